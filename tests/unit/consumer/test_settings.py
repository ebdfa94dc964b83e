"""consumer.toml and its two companions: what is taken, and that everything else is refused with one clear line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from umccr_pcgr.consumer.config import SettingsError, read_image, read_release, read_settings

GOOD = """
release_file = "/etc/pcgr/release.json"
runtime_file = "/etc/pcgr/runtime.json"
refdata_dir = "/mnt/pcgr/bundles/20260620"
vep_dir = "/mnt/pcgr/vep/115"
work_dir = "/mnt/pcgr/work"
log_dir = "/mnt/pcgr/log"
state_dir = "/var/lib/pcgr"
assemblies = ["grch38"]
idle_seconds = 600
timeout_seconds = 14400
drained_file = "/run/pcgr-consumer/drained"
[queue]
kind = "sqs"
name = "pcgr"
region = "ap-southeast-2"
endpoint_url = "http://169.254.0.2:5000"
notes_bucket = "pcgr-1-ap-southeast-2"
[limits]
memory = "6g"
cpus = 2
pids = 512
members = 16
unpacked_bytes = 8589934592
ratio = 200
"""


def test_the_file_of_the_contract_is_read(tmp_path: Path) -> None:
    path = tmp_path / "consumer.toml"
    path.write_text(GOOD)
    settings = read_settings(path)
    assert settings.assemblies == ("grch38",)
    assert settings.queue.name == "pcgr"
    assert settings.limits.unpacked_bytes == 8589934592
    path.write_text(GOOD.replace('kind = "sqs"', 'kind = "spool"\nspool_dir = "/var/spool/pcgr"'))
    assert settings.queue.spool_dir is None
    assert read_settings(path).queue.spool_dir == Path("/var/spool/pcgr")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("idle_seconds = 600", "idle_second = 600", "idle_second: unknown key, ... did you mean idle_seconds?"),
        ("[limits]", "[limit]", "limit: unknown key"),
        ("pids = 512", "pid = 512", "limits.pid: unknown key, ... did you mean pids?"),
        ("pids = 512", "pids = 0", "limits.pids: found 0, allowed: a whole number from 1"),
        ("pids = 512", "pids = true", "limits.pids: found True, allowed: a whole number from 1"),
        ("cpus = 2", 'cpus = "2"', "limits.cpus: found '2', allowed: a number above 0"),
        ('memory = "6g"', 'memory = "6 GB"', "limits.memory: found '6 GB', allowed: docker's form"),
        ('kind = "sqs"', 'kind = "kafka"', "queue.kind: found 'kafka', allowed: sqs, spool"),
        ('kind = "sqs"', "", "queue.kind: missing"),
        ('name = "pcgr"', "", "queue.name: missing"),
        ('kind = "sqs"', 'kind = "spool"', "queue.spool_dir: missing"),
        (
            '"pcgr-1-ap-southeast-2"',
            '"s3://pcgr"',
            "queue.notes_bucket: found 's3://pcgr', allowed: the name of a bucket",
        ),
        ('"http://169.254.0.2:5000"', '"169.254.0.2"', "queue.endpoint_url: found '169.254.0.2', allowed: an http"),
        ('["grch38"]', "[]", "assemblies: found [], allowed: a list of at least one of grch37, grch38"),
        ('["grch38"]', '["hg38"]', "assemblies: found ['hg38'], allowed"),
        ('work_dir = "/mnt/pcgr/work"', "", "work_dir: missing, it is required"),
        ('"/mnt/pcgr/work"', '"work"', "work_dir: found 'work', allowed: an absolute path"),
        ('"/mnt/pcgr/work"', '"/mnt/a:b"', "work_dir: found '/mnt/a:b', allowed: an absolute path"),
        ("timeout_seconds = 14400", "timeout_seconds = 50000", "timeout_seconds: found 50000, allowed: up to 39600"),
        ("[queue]", "[queue", "not valid TOML: "),
        ("[queue]", "[queues]", "queue.file|queue.: found None, allowed: a table"),
    ],
)
def test_a_wrong_file_is_refused_with_one_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "consumer.toml"
    assert old in GOOD
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(SettingsError) as refusal:
        read_settings(path)
    text = str(refusal.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    for part in said.split(" ... "):
        assert any(option in text for option in part.split("|")), text


def test_a_missing_file_is_refused_with_one_line(tmp_path: Path) -> None:
    for read in (read_settings, read_image, read_release):
        with pytest.raises(SettingsError, match="nothing: cannot be read: No such file"):
            read(tmp_path / "nothing")


SUM = "a" * 64
RUNTIMES = {
    "docker": {"kind": "docker", "image": f"sha256:{SUM}", "reference": "r", "digest": None},
    "apptainer": {
        "kind": "apptainer",
        "image": "/opt/pcgr-runtime/0123456789abcdef.sif",
        "sha256": SUM,
        "reference": "r",
    },
    "conda": {
        "kind": "conda",
        "image": "/opt/pcgr-runtime/0123456789abcdef",
        "prefixes": {"pcgr": "/opt/pcgr-runtime/0123456789abcdef/envs/pcgr", "pcgrr": "/opt/pcgr-runtime/0/envs/pcgrr"},
        "locks": {"pcgr": SUM, "pcgrr": SUM},
    },
}


@pytest.mark.parametrize("record", RUNTIMES.values(), ids=RUNTIMES)
def test_the_record_of_each_kind_of_runtime_is_read(tmp_path: Path, record: dict[str, Any]) -> None:
    path = tmp_path / "runtime.json"
    path.write_text(json.dumps(record))
    image = read_image(path)
    assert (image.kind, image.image) == (record["kind"], record["image"])
    assert dict(image.prefixes) == record.get("prefixes", {})
    provenance = image.provenance()
    assert provenance["id"] == record["image"]
    assert provenance.items() >= {key: record[key] for key in ("kind", "sha256", "locks") if key in record}.items()


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("docker", {"kind": "lxc"}, "kind: found 'lxc', allowed: docker, apptainer, conda"),
        ("docker", {"image": "--privileged"}, "image: found '--privileged'"),
        ("apptainer", {"image": "--privileged"}, "image: found '--privileged', allowed: an absolute path"),
        ("apptainer", {"sha256": None}, "sha256: found None, allowed: a SHA-256"),
        ("conda", {"image": None}, "image: found None, allowed: an absolute path"),
        (
            "conda",
            {"prefixes": {"pcgr": "/p"}},
            "prefixes: found {'pcgr': '/p'}, allowed: an object with pcgr and pcgrr",
        ),
        ("conda", {"prefixes": {"pcgr": "/p", "pcgrr": "p r"}}, "allowed: an absolute path"),
        ("conda", {"locks": ["x"]}, "locks: found ['x'], allowed: an object"),
    ],
)
def test_a_wrong_record_is_refused_with_one_line(tmp_path: Path, kind: str, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "runtime.json"
    path.write_text(json.dumps(RUNTIMES[kind] | change))
    with pytest.raises(SettingsError) as refusal:
        read_image(path)
    assert str(refusal.value).startswith(f"{path}: ")
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_companions(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"release": "2.3.2", "bundle": {}}))
    with pytest.raises(SettingsError, match=r"bundle\.date: missing"):
        read_release(path)
    release = {
        "release": "0.9.2",
        "bundle": {"date": "20210627"},
        "vep": {"release": 104},
        "dialect": {"runs_in": "container", "commands": {"pcgr": {"success": {}}}},
    }
    path.write_text(json.dumps(release))
    assert read_release(path)["release"] == "0.9.2"
    path.write_text(json.dumps(release | {"dialect": {"runs_in": "host"}}))
    with pytest.raises(SettingsError, match=r"found 0\.9\.2, allowed: 1\.0\.0 and newer"):
        read_release(path)
    path.write_text(json.dumps(release | {"dialect": {"runs_in": "container", "commands": {"pcgr": {}}}}))
    with pytest.raises(SettingsError, match=r"dialect\.commands: found one without success"):
        read_release(path)
    path.write_text("{")
    with pytest.raises(SettingsError, match="not valid JSON"):
        read_release(path)
