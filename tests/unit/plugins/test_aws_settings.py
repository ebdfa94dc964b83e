"""Module aws_preflight: every setting of the roles aws and intake is checked before the first call to AWS."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import yaml

from support import ROOT
from support.module_runner import load, run

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ8mcPyIvKCkSqs1NmTKuGDvLdHjSyxmYR7ZQ3uvGe5J someone\n"
REGION_VARIABLES = ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_DEFAULT_PROFILE")


@pytest.fixture(autouse=True)
def no_region(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing in this process's environment names a region, nor a secret that Ansible would mask in messages."""
    for name in (*REGION_VARIABLES, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))


def check(region: str | None = "eu-west-2", **settings: Any) -> dict[str, Any]:
    return run("aws_preflight", **({"region": region} if region else {}), settings=settings)


def refusal(**settings: Any) -> str:
    """The error for settings that are refused; it is one line."""
    answer = check(**settings)
    assert answer.get("failed"), answer
    text: str = answer["msg"]
    assert "\n" not in text
    return text


# ---- region


def test_a_region_is_never_assumed() -> None:
    answer = check(region=None)
    assert answer["failed"]
    assert answer["msg"].startswith("aws_region: found none, allowed ")
    assert "AWS_REGION" in answer["msg"] and "profile" in answer["msg"]


@pytest.mark.parametrize("name", ["AWS_REGION", "AWS_DEFAULT_REGION"])
def test_the_environment_names_the_region(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "eu-central-1")
    assert check(region=None)["region"] == "eu-central-1"
    assert check(region="us-west-2")["region"] == "us-west-2"


def test_the_profile_names_the_region(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config").write_text(
        "[default]\nregion = eu-north-1\n[profile hospital]\nregion = ca-central-1\n[profile bare]\n"
    )
    assert check(region=None)["region"] == "eu-north-1"
    monkeypatch.setenv("AWS_PROFILE", "hospital")
    assert check(region=None)["region"] == "ca-central-1"
    monkeypatch.setenv("AWS_PROFILE", "bare")
    assert check(region=None)["failed"]
    monkeypatch.setenv("AWS_PROFILE", "nosuch")
    assert "nosuch" in check(region=None)["msg"]


@pytest.mark.parametrize("region", ["Sydney", "eu-west", "eu_west_2", "eu-west-2a"])
def test_what_is_no_region_is_refused(region: str) -> None:
    answer = check(region=region)
    assert answer["failed"]
    assert f"aws_region: found '{region}'" in answer["msg"]


# ---- who may use SSH


@pytest.mark.parametrize(
    ("value", "normal"),
    [
        ("203.0.113.7/32", "203.0.113.7/32"),
        ("203.0.113.7", "203.0.113.7/32"),
        (" 203.0.113.0/24 ", "203.0.113.0/24"),
        ("2001:db8::/48", "2001:db8::/48"),
        ("2001:db8::7", "2001:db8::7/128"),
        ("2001:DB8:0::7/128", "2001:db8::7/128"),
    ],
)
def test_addresses_are_normalised(value: str, normal: str) -> None:
    assert check(aws_ssh_cidr=value)["settings"]["aws_ssh_cidr"] == normal


@pytest.mark.parametrize(
    "value", ["203.0.113.7/24", "203.0.113.7/33", "203.0.113", "home", "2001:db8::7/48", "10.0.0.0/"]
)
def test_what_is_no_address_range_is_refused(value: str) -> None:
    assert refusal(aws_ssh_cidr=value).startswith(f"aws_ssh_cidr: found '{value}', allowed ")


def test_a_range_with_host_bits_names_the_two_that_may_be_meant() -> None:
    text = refusal(aws_ssh_cidr="203.0.113.7/24")
    assert "203.0.113.0/24" in text and "203.0.113.7/32" in text


@pytest.mark.parametrize("value", ["0.0.0.0/0", "::/0"])
def test_everybody_needs_a_confirmation(value: str) -> None:
    assert "aws_ssh_from_anywhere" in refusal(aws_ssh_cidr=value)
    assert "aws_ssh_from_anywhere" in refusal(aws_ssh_cidr=value, aws_ssh_from_anywhere="false")
    assert check(aws_ssh_cidr=value, aws_ssh_from_anywhere="true")["settings"]["aws_ssh_cidr"] == value


def test_one_of_range_and_group_is_needed() -> None:
    for empty in (None, ""):
        text = refusal(aws_ssh_cidr=empty, aws_security_group=empty)
        assert text.startswith("aws_ssh_cidr: found none, allowed ") and "aws_security_group" in text
    assert not check(aws_ssh_cidr=None, aws_security_group="sg-0123456789abcdef0").get("failed")
    assert refusal(aws_security_group="default").startswith("aws_security_group: found 'default', allowed sg-")


# ---- keys


def test_the_public_key_is_looked_at(tmp_path: Path) -> None:
    key = tmp_path / "key.pub"
    assert refusal(aws_public_key_file=str(key)).startswith(f"aws_public_key_file: found no file {key}, allowed ")
    key.write_text(KEY)
    assert not check(aws_public_key_file=str(key)).get("failed")
    assert refusal(aws_public_key_file=str(tmp_path)).startswith("aws_public_key_file: found no file")
    for content in (
        "",
        "ssh-dss AAAAB3NzaC1kc3MAAACBAP me",
        "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAI me",
        "ssh-ed25519 !!!",
        "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEA\n",
    ):
        key.write_text(content)
        text = refusal(aws_public_key_file=str(key))
        assert text.startswith("aws_public_key_file: found ") and "b3BlbnNz" not in text
    key.write_bytes(b"\xff\xfe")
    refusal(aws_public_key_file=str(key))


def test_a_key_or_its_name_is_needed() -> None:
    text = refusal(aws_public_key_file=None, aws_key_name=None)
    assert text.startswith("aws_public_key_file: found none") and "aws_key_name" in text
    assert not check(aws_public_key_file=None, aws_key_name="mine").get("failed")


def test_a_private_key_that_is_missing_is_refused(tmp_path: Path) -> None:
    assert refusal(aws_private_key_file=str(tmp_path / "id")).startswith("aws_private_key_file: found no file")
    assert not check(aws_private_key_file=None).get("failed")


# ---- spot


@pytest.mark.parametrize(
    ("value", "normal"),
    [
        ("true", True),
        ("True", True),
        ("yes", True),
        (True, True),
        (False, False),
        ("false", False),
        ("no", False),
        ("auto", "auto"),
        ("AUTO", "auto"),
    ],
)
def test_spot_is_normalised(value: Any, normal: Any) -> None:
    found = check(aws_spot=value)["settings"]["aws_spot"]
    assert (type(found), found) == (type(normal), normal)


@pytest.mark.parametrize("value", ["maybe", "", 2, None])
def test_other_words_for_spot_are_refused(value: Any) -> None:
    assert refusal(aws_spot=value).endswith("allowed true, false or auto")


@pytest.mark.parametrize("library", ["numpy", "msgspec"])
def test_the_choice_of_pools_needs_its_libraries(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    plain = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, package=None: None if name == library else plain(name, package)
    )
    text = refusal(aws_spot="auto")
    assert text.startswith("aws_spot: found auto") and library in text
    assert not check(aws_spot=True).get("failed")


def test_files_of_the_choice_exist(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.json")
    assert refusal(aws_spot="auto", aws_spot_history=[missing]).startswith("aws_spot_history: found no file")
    assert refusal(aws_spot="auto", aws_spot_advisor=missing).startswith("aws_spot_advisor: found no file")
    assert refusal(aws_spot="auto", aws_spot_on_demand=missing).startswith("aws_spot_on_demand: found no file")
    assert not check(aws_spot=False, aws_spot_advisor=missing).get("failed")


# ---- the other settings


@pytest.mark.parametrize(
    ("name", "bad", "good"),
    [
        ("aws_name", "my machines", "pcgr-2"),
        ("aws_name", "", "a"),
        ("aws_name", "x" * 57, "x" * 56),
        ("aws_name", "sg-pcgr", "pcgr-sg"),
        ("aws_key_name", "schlüssel", "my key"),
        ("aws_image", "debian-12", "ami-0123456789abcdef0"),
        ("aws_instance_type", "m5xlarge", "m5.xlarge"),
        ("aws_instance_type", None, "u7i-12tb.224xlarge"),
        ("aws_spot_types", ["m5"], ["m5.xlarge", "c6i.2xlarge"]),
        ("aws_spot_vcpus", 0, 4),
        ("aws_spot_memory_gib", "much", "16"),
        ("aws_spot_disk_gb", -1, 0),
        ("aws_spot_losses", 0, 2),
        ("aws_spot_budget_usd", -1, 0),
        ("aws_spot_budget_hours", 0, 24),
        ("aws_volume_gb", 0, "120"),
        ("aws_volume_gb", 65537, 65536),
        ("aws_volume_gb", True, 1),
        ("aws_data_volume_gb", 0, None),
        ("aws_data_snapshot", "data", "snap-0123456789abcdef0"),
        ("aws_subnet", "default", "subnet-0123abcd"),
        ("aws_vpc", "default", "vpc-0123abcd"),
        ("aws_ssh_port", 65536, 2222),
        ("aws_ssh_user", "Root User", "admin"),
        ("aws_instance_profile", "a/b", None),
        ("aws_wait_seconds", 0, 600),
        ("aws_max_age_hours", -1, 0),
        ("aws_poweroff_when_drained", "perhaps", "no"),
        ("aws_guest_endpoint_url", "10.0.2.2:4566", "http://10.0.2.2:4566"),
        ("intake_name", "a/b", "a_b"),
        ("intake_bucket", "Samples", "samples.example"),
        ("intake_bucket", "a", None),
        ("intake_queue", "a b", "pcgr"),
        ("intake_queue", "pcgr.fifo", "pcgr"),
        ("intake_role", "a b", "pcgr-machine"),
        ("intake_suffixes", [], ["-somatic.tar.gz"]),
        ("intake_visibility_seconds", 43201, 43200),
        ("intake_max_receives", 0, 1000),
        ("intake_retention_seconds", 59, 1209600),
        ("intake_delete_data", "perhaps", "true"),
    ],
)
def test_each_setting_has_bounds(name: str, bad: Any, good: Any) -> None:
    shown = "none" if bad in (None, "", []) else f"{bad!r}"
    assert refusal(**{name: bad}).startswith(f"{name}: found {shown}, allowed ")
    assert not check(**{name: good}).get("failed")


def test_every_fault_is_named_at_once() -> None:
    text = refusal(aws_volume_gb=0, aws_instance_type="big")
    assert "aws_volume_gb" in text and "aws_instance_type" in text


def test_a_setting_without_a_rule_is_a_fault_of_the_caller() -> None:
    assert "aws_colour" in refusal(aws_colour="red")


def test_every_checked_setting_is_one_of_the_roles() -> None:
    """The rules and the roles' options are the same names, except for what the argument specs alone bound."""
    root = ROOT / "roles"
    options = set()
    for role in ("aws", "intake"):
        options |= set(yaml.safe_load((root / role / "defaults/main.yml").read_text()))
    unchecked = {"aws_state", "intake_state", "aws_region", "intake_region"}
    assert set(load("module_utils._aws").RULES) == options - unchecked
