"""The release files, their loader and the lookup."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.umccr.pcgr.plugins.module_utils import _release as releases

from support import ROOT

NAMES = releases.list_releases()
DIALECTS = sorted(path.stem for path in (ROOT / "releases/dialects").glob("*.yml"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the releases to break."""
    return Path(shutil.copytree(ROOT / "releases", tmp_path / "releases"))


def raw(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "releases" / f"{name}.yml").read_text())
    return content


def edit(path: Path, found: str, replacement: str) -> None:
    text = path.read_text()
    assert found in text
    path.write_text(text.replace(found, replacement, 1))


def refusal(folder: Path, name: str) -> str:
    with pytest.raises(releases.ReleaseError) as caught:
        releases.load_release(name, folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_every_file_loads_or_is_refused_with_its_reason(name: str) -> None:
    content = raw(name)
    if content["status"] == "refused":
        with pytest.raises(releases.ReleaseError, match=re.escape(content["refused_because"])):
            releases.load_release(name)
        return
    loaded = releases.load_release(name)
    assert loaded["dialect"]["name"] == content["dialect"]
    assert {**loaded, "dialect": content["dialect"]} == content


@pytest.mark.parametrize("name", DIALECTS)
def test_every_dialect_is_whole_and_used(name: str) -> None:
    assert releases.load_dialect(name)["name"] == name
    assert name in {raw(release)["dialect"] for release in NAMES}


def test_a_loaded_release_survives_json_and_is_the_callers_own() -> None:
    loaded = releases.load_release("2.3.2")
    assert json.loads(json.dumps(loaded)) == loaded
    loaded["dialect"]["commands"].clear()
    assert releases.load_release("2.3.2")["dialect"]["commands"]


def test_which_releases_there_are() -> None:
    assert NAMES[0] == "0.5.3"
    assert NAMES[-2:] == ["2.3.2", "rehearsal"]
    assert NAMES.index("0.8.4") < NAMES.index("0.9.0rc") < NAMES.index("0.9.1") < NAMES.index("1.0.0")
    assert len(NAMES) == 40  # 39 tags of the project's releases since 0.5.3, and the rehearsal
    assert not {"0.10.3", "0.10.18", "0.10.19", "2.2.1.1"} & set(NAMES)
    assert [name for name in NAMES if raw(name)["status"] == "refused"] == ["2.3.0"]


def test_whose_command_starts_docker_itself_offers_data_only() -> None:
    for name in NAMES:
        host = releases.load_dialect(raw(name)["dialect"])["runs_in"] == "host"
        assert host is (raw(name)["status"] == "data_only"), name


def test_newest_is_the_newest_supported(folder: Path) -> None:
    assert releases.newest_supported() == "2.3.2"
    assert releases.load_release("newest")["release"] == "2.3.2"
    edit(
        folder / "2.3.2.yml",
        "status: supported\nrefused_because: null",
        "status: refused\nrefused_because: 'for a test'",
    )
    assert releases.newest_supported(folder) == "2.3.1"
    for path in folder.glob("*.yml"):
        if path.stem != "2.3.0":
            path.unlink()
    with pytest.raises(releases.ReleaseError, match="supported"):
        releases.newest_supported(folder)


@pytest.mark.parametrize(
    ("found", "replacement", "words"),
    [
        ('date: "20260620"', 'date: "20250314"', ["bundle.archives.grch38.file", "20260620", "allowed 20250314"]),
        (
            "pcgr/pcgr_ref_data.20260620.grch37",
            "pcgr/pcgr_ref_data.20250314.grch37",
            ["grch37.url", "20250314", "20260620"],
        ),
        ("release: 115", "release: 113", ["vep.archives.grch38.file", "found 115", "allowed 113"]),
        ('packaged: "115.1"', 'packaged: "114.0"', ["vep.packaged", "114.0", "115.x"]),
    ],
)
def test_what_does_not_belong_together_is_refused(folder: Path, found: str, replacement: str, words: list[str]) -> None:
    edit(folder / "2.3.2.yml", found, replacement)
    told = refusal(folder, "2.3.2")
    assert all(word in told for word in words), told


def test_releases_that_share_a_bundle_or_cache_name_the_same_archives() -> None:
    shared: dict[tuple[str, Any], list[Any]] = defaultdict(list)
    for name in NAMES:
        content = raw(name)
        if content["status"] != "rehearsal":
            shared["bundle", content["bundle"]["date"]].append(content["bundle"])
            shared["vep", content["vep"]["release"]].append(content["vep"]["archives"])
    for key, parts in shared.items():
        archives = [part.get("archives", part) for part in parts]
        assert all(one == archives[0] for one in archives), key
    files = [a["file"] for parts in shared.values() for a in parts[0].get("archives", parts[0]).values() if a["file"]]
    assert len(files) == len(set(files))


def test_archives_are_named_after_what_they_hold() -> None:
    for name in NAMES:
        content = raw(name)
        bundle, vep = content["bundle"], content["vep"]
        assert bundle["date"] in bundle["version_text"]
        for part, mark in ((bundle, bundle["date"]), (vep, f"_{vep['release']}_")):
            for assembly, archive in part["archives"].items():
                if archive["url"]:
                    assert archive["url"].endswith("/" + archive["file"])
                if archive["file"] and content["status"] != "rehearsal":
                    assert mark in archive["file"]
                    assert assembly in archive["file"].lower()
        if content["image"]["reference"] and content["status"] != "rehearsal":
            assert content["image"]["reference"].endswith(f":{name}")


def test_rehearsal_is_2_3_2_in_small() -> None:
    small, real = raw("rehearsal"), raw("2.3.2")
    for field in ("dialect", "assemblies", "date"):
        assert small[field] == real[field]
    for part, field in (("bundle", "date"), ("bundle", "version_file"), ("bundle", "version_text"), ("vep", "release")):
        assert small[part][field] == real[part][field]


@pytest.mark.parametrize(("name", "near"), [("2.33", "2.3.2"), ("v2.3.2", "2.3.2"), ("rehersal", "rehearsal")])
def test_an_unknown_release_is_refused_with_near_matches(name: str, near: str) -> None:
    message = refusal(ROOT / "releases", name)
    assert name in message
    assert near in message.split("did you mean")[1]


def test_an_unknown_name_without_neighbours_lists_what_there_is() -> None:
    assert "allowed: 0.5.3, " in refusal(ROOT / "releases", "qqq")


def test_a_name_is_not_a_path() -> None:
    assert "no such file" in refusal(ROOT / "releases", "../releases/2.3.2")


@pytest.mark.parametrize(
    ("found", "replacement", "field", "says"),
    [
        ('date: "2026-08-10"', 'date: "10.8.2026"', "date", "'10.8.2026'"),
        ("status: supported", "status: suported", "status", "'suported'"),
        ("status: supported", "status: refused", "refused_because", "null"),
        ("refused_because: null", "refused_because: odd", "refused_because", "'odd'"),
        ("faults:", "fauls:", "(top level)", "'fauls'; did you mean faults?"),
        ("      bytes: null", "      byte: null", "bundle.archives.grch38", "'byte'; did you mean bytes?"),
        ("      bytes: null\n", "", "bundle.archives.grch38", "'bytes' is a required property"),
        ("f9b8149e", "F9B8149E", "bundle.archives.grch38.sha256", "F9B8149E"),
        ("https://insilico", "ftp://insilico", "bundle.archives.grch38.url", "ftp://insilico"),
        ("location: separate", "location: in_bundle", "vep.archives", "maxProperties"),
        ("  release: 115", '  release: "115"', "vep.release", "'115'"),
        ("assemblies: [grch37, grch38]", "assemblies: [grch38]", "bundle.archives", "grch37"),
        ('release: "2.3.2"', 'release: "2.3.1"', "release", "allowed '2.3.2'"),
        ('dialect: "2.3"', 'dialect: "2.4"', "dialect", "'2.4', no such file; did you mean 2."),
    ],
)
def test_a_wrong_field_is_one_line_that_names_file_and_field(
    folder: Path, found: str, replacement: str, field: str, says: str
) -> None:
    edit(folder / "2.3.2.yml", found, replacement)
    message = refusal(folder, "2.3.2")
    assert ".yml: " in message
    assert f" {field}: " in message
    assert says in message


@pytest.mark.parametrize(
    ("found", "replacement", "field", "says"),
    [
        (
            "type: int, owner: sample, min: 0, max: 30",
            "type: int, owner: sampel, min: 0, max: 30",
            "commands.pcgr.options.tumor_site",
            "'sampel'",
        ),
        ("  cpsr:\n    executable: cpsr", "  cprs:\n    executable: cpsr", "commands", "'cprs'; did you mean cpsr"),
        (
            "{option: tumor_only}",
            "{option: tumour_only}",
            "legacy.tumor_only.vcf_tumor_only",
            "did you mean tumor_only",
        ),
        ("{le: tumor_dp_min}", "{le: tumor_pd_min}", "rules", "did you mean tumor_dp_min"),
        ('name: "2.3"', 'name: "2.3"\nextends: "2.2.5"', "extends", "circle"),
    ],
)
def test_a_wrong_dialect_is_one_line_that_names_file_and_field(
    folder: Path, found: str, replacement: str, field: str, says: str
) -> None:
    edit(folder / "dialects/2.3.yml", found, replacement)
    message = refusal(folder, "2.3.2")
    assert re.search(r"dialects/2\.[0-9.]+\.yml: ", message)
    assert field in message
    assert says in message


@pytest.mark.parametrize("text", ["a: [", "- a list\n", "", "\x00"])
def test_a_file_that_is_no_mapping_is_one_line(folder: Path, text: str) -> None:
    (folder / "2.3.2.yml").write_text(text)
    assert "2.3.2.yml: " in refusal(folder, "2.3.2")


def test_a_dialect_that_is_no_mapping_is_one_line(folder: Path) -> None:
    (folder / "dialects/2.3.yml").write_text("- a list\n")
    assert "2.3.yml: found [" in refusal(folder, "2.3.2")


def test_a_candidate_is_older_than_its_release(tmp_path: Path) -> None:
    for name in ("2.10.0", "2.4.0", "2.4.0rc", "2.3.9", "rehearsal"):
        (tmp_path / f"{name}.yml").touch()
    assert releases.list_releases(tmp_path) == ["2.3.9", "2.4.0rc", "2.4.0", "2.10.0", "rehearsal"]


def test_an_edited_file_is_read_anew(folder: Path) -> None:
    assert releases.load_release("2.3.2", folder)["faults"]
    (folder / "2.3.2.yml").write_text(
        re.sub(r"faults:\n.*", "faults: []\n", (folder / "2.3.2.yml").read_text(), flags=re.S)
    )
    assert releases.load_release("2.3.2", folder)["faults"] == []


@pytest.mark.parametrize("library", ["yaml", "jsonschema"])
def test_a_missing_library_is_one_clear_error(library: str) -> None:
    imported = "from ansible_collections.umccr.pcgr.plugins.module_utils import _release"
    code = f"import sys; sys.modules[{library!r}] = None; {imported}; _release.load_release('2.3.2')"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert ".ReleaseError: " in last
    assert f"the Python library {library} is missing" in last


def ansible(expression: str) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / ".venv/bin/ansible"), "localhost", "-m", "debug", "-a", f"msg={{{{ {expression} }}}}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


def test_lookup_gives_releases() -> None:
    result = ansible("query('umccr.pcgr.release', 'rehearsal', 'newest') | map(attribute='release') | join('+')")
    assert "rehearsal+2.3.2" in result.stdout, result.stderr


def test_lookup_refuses_with_the_reason() -> None:
    result = ansible("lookup('umccr.pcgr.release', '2.3.0')")
    assert result.returncode != 0
    assert "release 2.3.0 is refused: The vcf2maf step fails" in " ".join((result.stdout + result.stderr).split())
    assert "Traceback" not in result.stdout + result.stderr


def test_a_fault_in_what_a_dialect_extends_is_named_there(folder: Path) -> None:
    edit(folder / "dialects/2.3.yml", "executable: pcgr", "executable: pgcr")
    message = refusal(folder, "2.2.4")
    assert "dialects/2.3.yml: commands.pcgr.executable: found 'pgcr'" in message


@pytest.mark.parametrize(("name", "file"), [("2.3.2", "2.3"), ("1.4.1", "1.3")])
def test_a_dialect_is_named_after_its_file(folder: Path, name: str, file: str) -> None:
    edit(folder / f"dialects/{file}.yml", f'name: "{file}"', 'name: "9.9"')
    assert f"dialects/{file}.yml: name: found '9.9', allowed '{file}'" in refusal(folder, name)
