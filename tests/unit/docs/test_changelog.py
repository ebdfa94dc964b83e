"""The changelog is what antsibull-changelog makes of releases and fragments."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

from support import ROOT
from support.changelog import rendered

SECTIONS = [
    key for key, _unused in yaml.safe_load((ROOT / "changelogs/config.yaml").read_text(encoding="utf-8"))["sections"]
]


def test_before_the_first_release_it_holds_the_fragments_and_records_nothing(tmp_path: Path) -> None:
    for part in ("changelogs", "meta", "plugins"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("playbooks", "roles"):
        (tmp_path / part).mkdir()
    shutil.copy(ROOT / "galaxy.yml", tmp_path)
    (tmp_path / "changelogs/changelog.yaml").write_text("---\nancestor: null\nreleases: {}\n")
    (tmp_path / "changelogs/fragments/x.yml").write_text("---\nbugfixes:\n  - role x - a line of this test.\n")
    before = sorted(path.name for path in (tmp_path / "changelogs/fragments").iterdir())
    text = rendered(tmp_path)
    assert "\nUnreleased\n==========\n" in text and "v1.0.0" not in text
    assert "\n- role x - a line of this test.\n" in text
    assert "\n- databundle - " in text  # a new module
    assert sorted(path.name for path in (tmp_path / "changelogs/fragments").iterdir()) == before
    assert "releases: {}" in (tmp_path / "changelogs/changelog.yaml").read_text()


def test_lines_begin_with_what_they_are_about() -> None:
    for path in (ROOT / "changelogs/fragments").glob("*.yml"):
        for section, lines in yaml.safe_load(path.read_text(encoding="utf-8")).items():
            for line in lines if section in SECTIONS else []:
                subject, dash, sentence = line.partition(" - ")
                assert dash and subject and sentence.rstrip().endswith("."), f"{path.name}: {line}"


def test_the_committed_changelog_is_a_generated_one() -> None:
    text = (ROOT / "CHANGELOG.rst").read_text(encoding="utf-8")
    assert text.startswith("========================\numccr.pcgr Release Notes\n========================\n")
