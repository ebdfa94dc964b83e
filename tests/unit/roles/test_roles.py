"""Every role: its options are documented, with the same literal values, and nothing undocumented is read."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from support import ROOT

ROLES = ROOT / "roles"
NAMES = sorted(path.name for path in ROLES.iterdir() if (path / "tasks/main.yml").is_file())


def read(name: str, file: str) -> Any:
    path = ROLES / name / file
    return yaml.safe_load(path.read_text()) if path.is_file() else {}


def options(name: str) -> dict[str, Any]:
    found: dict[str, Any] = read(name, "meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    return found


def differences(defaults: dict[str, Any], spec: dict[str, Any]) -> list[str]:
    """What differs between defaults and documented options; computed defaults cannot be documented literally."""
    faults = [f"{key}: not documented" for key in defaults.keys() - spec.keys()]
    faults += [f"{key}: documented, has no default" for key in spec.keys() - defaults.keys()]
    for key in defaults.keys() & spec.keys():
        value, documented = defaults[key], spec[key].get("default")
        if isinstance(value, str) and "{{" in value:
            if documented is not None:
                faults.append(f"{key}: computed, but documented as {documented!r}")
        elif value != documented or type(value) is not type(documented):
            faults.append(f"{key}: default {value!r}, documented {documented!r}")
    return sorted(faults)


def test_there_are_roles() -> None:
    assert {"base", "docker", "databundle", "runtime", "consumer", "intake", "aws"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_options_are_documented_as_they_are(name: str) -> None:
    assert differences(read(name, "defaults/main.yml"), options(name)) == []


def test_differences_are_found() -> None:
    spec = {
        "same": {"default": 1},
        "other": {"default": 1},
        "kind": {"default": 1},
        "gone": {},
        "made": {"default": "x"},
    }
    defaults = {"same": 1, "other": 2, "kind": True, "new": 1, "made": "{{ x }}"}
    assert [fault.split(":")[0] for fault in differences(defaults, spec)] == ["gone", "kind", "made", "new", "other"]


@pytest.mark.parametrize("name", NAMES)
def test_every_option_says_what_it_is(name: str) -> None:
    for entry in read(name, "meta/argument_specs.yml")["argument_specs"].values():
        for key, option in entry["options"].items():
            assert option.get("type") and option.get("description"), key
            assert option["type"] != "list" or option.get("elements"), key
            assert not ("default" in option and option.get("required")), key


@pytest.mark.parametrize("name", NAMES)
def test_public_names_carry_the_roles_prefix(name: str) -> None:
    assert all(key.startswith(f"{name}_") for key in read(name, "defaults/main.yml"))
    assert all(key.startswith(f"__{name}_") for key in read(name, "vars/main.yml"))


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_used(name: str) -> None:
    """An option that nothing reads is a promise not kept."""
    text = "\n".join(
        path.read_text()
        for path in (ROLES / name).rglob("*")
        if path.suffix in (".yml", ".j2") and path.parts[-2] != "meta" and "files" not in path.parts
    )
    for key in read(name, "defaults/main.yml"):
        assert len(re.findall(rf"\b{key}\b", re.sub(r"(?m)^\s*#.*$", "", text))) > 1, key


@pytest.mark.parametrize("name", NAMES)
def test_role_is_complete(name: str) -> None:
    assert read(name, "meta/main.yml")["galaxy_info"]["min_ansible_version"] == "2.18"
    assert (ROLES / name / "README.md").is_file()


def sources(name: str) -> dict[str, str]:
    """Text of a role's YAML files and templates, without comments, by path."""
    paths = [path for path in (ROLES / name).rglob("*") if path.suffix in (".yml", ".j2") and "files" not in path.parts]
    return {str(path.relative_to(ROLES)): re.sub(r"(?m)^\s*#.*$", "", path.read_text()) for path in paths}


def private_of_others(name: str, text: str) -> set[str]:
    """Private variables of other roles that a role's text names."""
    return {word for word in re.findall(r"(?<!\w)__[a-z]\w*", text) if not word.startswith(f"__{name}_")}


@pytest.mark.parametrize("name", NAMES)
def test_no_role_reads_anothers_private_variables(name: str) -> None:
    found = {path: private_of_others(name, text) for path, text in sources(name).items()}
    assert {path: words for path, words in found.items() if words} == {}


def test_private_variables_of_others_are_found() -> None:
    assert private_of_others("docker", "x in (__base_dpkg.lines) and __docker_state") == {"__base_dpkg"}


def entry_points(text: str) -> set[tuple[str, str]]:
    """Role and entry point of each inclusion of a role's tasks in a playbook or task file."""
    return set(re.findall(r"name: umccr\.pcgr\.(\w+)\n\s+tasks_from: (\w+)", text))


def test_every_entry_point_that_is_called_has_an_argument_spec() -> None:
    files = [*(ROOT / "playbooks").glob("*.yml"), *ROLES.glob("*/tasks/*.yml")]
    called = {pair for path in files for pair in entry_points(path.read_text())}
    assert {("base", "packages"), ("databundle", "prune"), ("runtime", "smoke")} <= called
    checked = {pair for pair in called if pair[0] in ("base", "docker", "databundle", "runtime")}
    specs = {(name, entry) for name in NAMES for entry in read(name, "meta/argument_specs.yml")["argument_specs"]}
    assert checked - specs == set()


@pytest.mark.parametrize("name", NAMES)
def test_entry_points_document_the_roles_own_defaults(name: str) -> None:
    defaults = read(name, "defaults/main.yml")
    for entry, spec in read(name, "meta/argument_specs.yml")["argument_specs"].items():
        shared = {key: option for key, option in spec["options"].items() if key in defaults}
        assert differences({key: defaults[key] for key in shared}, shared) == [], entry
