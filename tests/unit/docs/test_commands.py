"""Commands, paths and settings that the pages show exist."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from support import ROOT
from support.markdown import Shown, blocks, commands, inline, pages

PAGES = pages()
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.MULTILINE))
SCRIPTS: dict[str, str] = tomllib.loads((ROOT / "python/pyproject.toml").read_text(encoding="utf-8"))["project"][
    "scripts"
]
FOLDERS = (
    "changelogs docs examples inventory molecule packer playbooks plugins python releases roles scripts testbed tests"
)

# What pages show before it is merged. A test fails as soon as one of them exists: remove it here then.
PLANNED: set[str] = set()


@functools.cache
def options_of(command: str) -> set[str]:
    """Return the long options in the help of a console command."""
    program = Path(sys.executable).with_name(command)
    answer = subprocess.run([program, "--help"], capture_output=True, text=True, check=True)
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", answer.stdout))


@functools.cache
def settings() -> set[str]:
    """Return the names of all role options and of the settings that roles share."""
    found: set[str] = set()
    for path in (ROOT / "roles").glob("*/meta/argument_specs.yml"):
        for entry in yaml.safe_load(path.read_text(encoding="utf-8"))["argument_specs"].values():
            found |= set(entry.get("options", {}))
    defaults = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "roles").glob("*/defaults/main.yml"))
    found |= set(re.findall(r"\bpcgr_[a-z_]+", defaults))
    plays = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "playbooks").glob("*.yml"))
    return found | set(re.findall(r"\b(pcgr_[a-z_]+) \| default", plays))


def faults(shown: Shown, root: Path = ROOT) -> list[str]:
    """Return what a shown command names that does not exist."""
    program, *rest = shown.words
    found = []
    if program == "make":
        found += [f"make {word}" for word in rest if "=" not in word and word not in TARGETS]
    elif program in SCRIPTS or program.startswith("pcgr-"):
        if program not in SCRIPTS:
            return [program]
        known = options_of(program)
        found += [f"{program} {word}" for word in rest if word.startswith("--") and word.partition("=")[0] not in known]
    elif program == "ansible-playbook":
        book = rest[0]
        path = f"playbooks/{book.removeprefix('umccr.pcgr.')}.yml" if book.startswith("umccr.pcgr.") else book
        found += [] if (root / path).is_file() else [book]
        extras = re.findall(r"(?:^| )-e (\w+)=", " ".join(rest))
        found += [f"-e {name}" for name in extras if name not in settings()]
    elif re.search(r"(^|/)python3?$", program) and rest[0] == "-m":
        found += [] if find_spec(rest[1]) else [f"-m {rest[1]}"]
    elif "/" in program:
        found += [] if (root / program).is_file() else [program]
    for word in rest:
        if re.match(rf"({'|'.join(FOLDERS.split())})/", word) and not (root / word).exists():
            found.append(word)
    return [fault for fault in found if fault not in PLANNED]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_shown_commands_exist(page: Path) -> None:
    for shown in commands(page):
        assert faults(shown) == [], " ".join(shown.words)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_and_paths_in_the_prose_exist(page: Path) -> None:
    for text in inline(page.read_text(encoding="utf-8")):
        if match := re.fullmatch(r"make ([a-z][a-z-]*)(?: .*)?", text):
            assert match[1] in TARGETS or f"make {match[1]}" in PLANNED, text
        if match := re.fullmatch(r"(pcgr-[a-z]+)(?: (.*))?", text):
            # Units of systemd have such names, too.
            unit = (ROOT / f"roles/consumer/templates/etc/systemd/system/{text}.j2").is_file()
            assert unit or match[1] in SCRIPTS or not match[2], text
        if re.fullmatch(rf"({'|'.join(FOLDERS.split())})/[\w./-]+", text) and "…" not in text:
            assert (ROOT / text).exists() or not in_checkout(page), text


def in_checkout(page: Path) -> bool:
    """Whether a page speaks of this checkout; the pages of roles and releases also speak of hosts and of other projects."""
    return page.parent in (ROOT, ROOT / "docs", ROOT / "examples")


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_settings_in_examples_exist(page: Path) -> None:
    """Variables in a block of YAML are options of roles, or settings that roles share."""
    for block in blocks(page.read_text(encoding="utf-8"), "yaml"):
        for name in variables(yaml.safe_load(block)):
            assert name in settings(), name


def variables(document: Any) -> set[str]:
    """Return the keys of a document, at any depth, that are named like a setting."""
    if isinstance(document, list):
        return set().union(*map(variables, document))
    if not isinstance(document, dict):
        return set()
    prefixes = {path.name for path in (ROOT / "roles").iterdir()} | {"pcgr"}
    own = {key for key in document if "_" in str(key) and str(key).partition("_")[0] in prefixes}
    return own.union(*map(variables, document.values()))


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ("make demo NAME=x", None),
        ("make nosuch", "make nosuch"),
        ("pcgr-submit --bucket b f.vcf --wait", None),
        ("pcgr-submit --nosuch", "pcgr-submit --nosuch"),
        ("pcgr-nosuch", "pcgr-nosuch"),
        ("ansible-playbook umccr.pcgr.aws -e aws_region=x", None),
        ("ansible-playbook umccr.pcgr.nosuch", "umccr.pcgr.nosuch"),
        ("ansible-playbook playbooks/site.yml -e aws_regoin=x", "-e aws_regoin"),
        ("python -m localcloud up", None),
        ("python -m nosuch_module", "-m nosuch_module"),
        ("scripts/nosuch", "scripts/nosuch"),
        (".venv/bin/python -m pytest tests/unit/nosuch.py", "tests/unit/nosuch.py"),
    ],
)
def test_what_does_not_exist_is_found(words: str, fault: str | None) -> None:
    assert faults(Shown("page.md", tuple(words.split()))) == ([fault] if fault else [])


def test_unknown_settings_are_found() -> None:
    document = yaml.safe_load("- hosts: pcgr\n  roles:\n    - {role: umccr.pcgr.base, base_nosuch: 1, base_root: /x}\n")
    assert variables(document) == {"base_nosuch", "base_root"}
    assert variables(document) - settings() == {"base_nosuch"}


def test_what_is_planned_does_not_exist_yet() -> None:
    for text in sorted(PLANNED):
        program, _unused, rest = text.partition(" ")
        assert rest not in (TARGETS if program == "make" else options_of(program)), (
            f"{text} exists: remove it from PLANNED"
        )


def test_the_readmes_install_line_brings_what_the_plugins_need() -> None:
    """`pip install 'umccr-pcgr[client,spot]'` is all that a controller gets."""
    (line,) = [shown for shown in commands(ROOT / "README.md") if shown.words[:2] == ("pip", "install")]
    (wanted,) = re.findall(r"umccr-pcgr\[(.*)\]", line.words[2])
    project = tomllib.loads((ROOT / "python/pyproject.toml").read_text(encoding="utf-8"))["project"]
    brought = {name(spec) for extra in wanted.split(",") for spec in project["optional-dependencies"][extra]}
    brought |= {"botocore", "pyyaml"}  # by boto3 and by ansible-core
    needed = (ROOT / "meta/ee-requirements.txt").read_text(encoding="utf-8").splitlines()
    assert {name(spec) for spec in needed if spec and not spec.startswith("#")} <= brought


def name(requirement: str) -> str:
    """Return the name in a requirement, in lower case."""
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower()
