"""Quality gates that look at the collection as its users get it: sanity, import, documentation, installation.

``python tests/support/gates.py NAME...`` runs the named gates, ``all`` runs every gate. A gate works on a copy of the files that
Git tracks or would track, below ``.cache/gates``: ansible-test accepts a collection only at a path
``…/ansible_collections/umccr/pcgr``, and a stray file of the checkout must not reach the artifact.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / ".cache" / "gates"
SOURCE = WORK / "source" / "ansible_collections" / "umccr" / "pcgr"
COLLECTION = "umccr.pcgr"
BIN = Path(sys.executable).parent
# ansible-core 2.19 runs on Python 3.11 and newer; other versions of the target side are tested where they are installed.
CONTROLLER_PYTHON = "3.11"
TARGET_PYTHONS = ("3.10", "3.12", "3.13")
DOCUMENTED = {"modules": "module", "lookup": "lookup", "filter": "filter", "test": "test", "inventory": "inventory"}
# Names under which ansible-core 2.18 to 2.21 look for the program that brings pip into their environments.
PIP_BOOTSTRAPS = ("get_pip_24_2.py", "get_pip_25_2.py")
# The same from the interpreter's own wheels, so that the package index is the only server needed. ensurepip points
# pip's configuration at the null device for the whole process; the install that follows needs the old environment.
PIP_BOOTSTRAP = """\
import os, subprocess, sys
environment = dict(os.environ)
subprocess.run([sys.executable, "-m", "ensurepip", "--default-pip"], check=True, stdout=subprocess.DEVNULL)
wanted = [argument for argument in sys.argv[1:] if not argument.startswith("--no-")]
sys.exit(subprocess.run([sys.executable, "-m", "pip", "install", *wanted], env=environment).returncode)
"""


class GateError(Exception):
    """A gate found something; the message is what to print."""


def run(command: list[str | Path], *, cwd: Path = ROOT, env: dict[str, str] | None = None) -> str:
    """Run `command` and return its output (stdout and stderr); raise GateError with it if the command fails."""
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "NO_COLOR": "1"} | (env or {})
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        name = " ".join(Path(part).name if isinstance(part, Path) else part for part in command[:3])
        raise GateError(f"{done.stdout}{name}: exit code: found {done.returncode}, allowed 0")
    return done.stdout


def tracked_files(root: Path) -> list[str]:
    """Return the files below `root` that Git tracks or would track, as relative paths."""
    names = run(["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=root).split("\0")
    return sorted({name for name in names if name and (root / name).is_file()})


def copy_source(root: Path = ROOT, target: Path = SOURCE) -> Path:
    """Make `target` hold the tracked files of `root` and nothing else; files that are the same are left alone."""
    wanted = set(tracked_files(root))
    target.mkdir(parents=True, exist_ok=True)
    # ansible-test asks the Git repository around a collection for its files, and in the checkout's this folder is ignored.
    run(["git", "init", "--quiet"], cwd=target)
    for path in sorted(target.rglob("*"), reverse=True):
        if ".git" in path.relative_to(target).parts:
            continue
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.relative_to(target).as_posix() not in wanted:
            path.unlink()
    for name in wanted:
        source, copy = root / name, target / name
        if copy.is_file() and filecmp.cmp(source, copy, shallow=False) and copy.stat().st_mode == source.stat().st_mode:
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, copy)
    link_dependencies(target.parents[2])
    return target


def link_dependencies(root: Path) -> None:
    """Put links to the installed collections that galaxy.yml names below `root`: tests in environments of their own need them."""
    installed = Path(sysconfig.get_path("purelib")) / "ansible_collections"
    for name in yaml.safe_load((ROOT / "galaxy.yml").read_text())["dependencies"]:
        link = root / "ansible_collections" / name.replace(".", "/")
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(installed / name.replace(".", "/"), target_is_directory=True)


def build() -> Path:
    """Build the artifact from the copied source and return the tarball's path."""
    folder = WORK / "artifact"
    shutil.rmtree(folder, ignore_errors=True)
    run([BIN / "ansible-galaxy", "collection", "build", copy_source(), "--output-path", folder])
    (tarball,) = folder.glob("*.tar.gz")
    return tarball


def isolated_home() -> dict[str, str]:
    """Return environment variables of a home folder below `WORK`, so that nothing depends on or changes the user's own."""
    home = WORK / "home"
    (home / ".config" / "pip").mkdir(parents=True, exist_ok=True)
    # ansible-test drops the variables that configure pip; a file survives.
    settings: dict[str, str] = {}
    for line in run([BIN / "python", "-m", "pip", "config", "list"]).splitlines():
        key, found, value = line.partition("=")
        if found:
            settings[key.split(".", 1)[1]] = value.strip("'\"")
    lines = [f"{key} = {value}" for key, value in settings.items()]
    (home / ".config" / "pip" / "pip.conf").write_text("\n".join(["[global]", *lines, ""]))
    return {"HOME": str(home), "ANSIBLE_HOME": str(home / ".ansible")}


def sanity(tests: list[str] | None = None) -> None:
    """Run ansible-test's sanity tests on the source, for each supported Python version that is installed.

    `tests` limits the run to these tests.
    """
    source, environment = copy_source(), isolated_home()
    cache = Path(environment["HOME"]) / ".ansible" / "test" / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    for name in PIP_BOOTSTRAPS:
        (cache / name).write_text(PIP_BOOTSTRAP)
    command: list[str | Path] = [BIN / "ansible-test", "sanity", "--color", "no", "--truncate", "0"]
    chosen: list[str | Path] = [part for test in tests or [] for part in ("--test", test)]
    output = run([*command, "--python", CONTROLLER_PYTHON, *chosen], cwd=source, env=environment)
    if "All targets skipped" in output:
        raise GateError(f"{output}ansible-test sanity: files: found none to test, allowed at least one")
    for version in TARGET_PYTHONS:
        if runs(f"python{version}"):
            per_version: list[str | Path] = ["--test", "compile", "--test", "import"]
            run([*command, "--python", version, *per_version], cwd=source, env=environment)


def runs(program: str) -> bool:
    """Return whether `program` is installed and starts; a version manager's placeholder is found but does not start."""
    return (
        bool(shutil.which(program))
        and not subprocess.run([program, "--version"], capture_output=True, check=False).returncode
    )


def importer() -> None:
    """Import the artifact as Galaxy does, with the strictest settings; a warning is a finding."""
    tarball = build()
    config = WORK / "galaxy-importer.cfg"
    strict = {
        "CHECK_CHANGELOG": True,
        "CHECK_REQUIRED_TAGS": True,
        "REQUIRE_V1_OR_GREATER": True,
        "RUN_ANSIBLE_DOC": True,
        "RUN_ANSIBLE_LINT": True,
        "RUN_ANSIBLE_TEST": False,  # the gate `sanity` runs them, without a container
        "RUN_FLAKE8": True,
    }
    config.write_text("\n".join(["[galaxy-importer]", *(f"{key} = {value}" for key, value in strict.items()), ""]))
    output = run(
        [sys.executable, "-m", "galaxy_importer.main", tarball],
        cwd=WORK,
        env=isolated_home() | {"GALAXY_IMPORTER_CONFIG": str(config)},
    )
    found = [line for line in output.splitlines() if line.startswith(("WARNING", "ERROR", "CRITICAL"))]
    if found:
        raise GateError("\n".join([*found, f"galaxy-importer: warnings and errors: found {len(found)}, allowed 0"]))


def docs() -> None:
    """Check the documentation of plugins and roles and the links in it."""
    run(
        [
            BIN / "antsibull-docs",
            "lint-collection-docs",
            ".",
            "--plugin-docs",
            "--validate-collection-refs",
            "dependent",
        ],
        cwd=copy_source(),
        env=isolated_home() | {"ANSIBLE_COLLECTIONS_PATH": str(SOURCE.parents[2])},
    )


def smoke() -> None:
    """Install the artifact into an empty folder, read each plugin's and role's documentation, check each playbook's syntax.

    The working folder and the home are empty too: what an installed collection needs must be in the artifact.
    """
    tarball = build()
    place = WORK / "installed"
    shutil.rmtree(place, ignore_errors=True)
    empty = place / "empty"
    empty.mkdir(parents=True)
    (empty / "ansible.cfg").touch()
    environment = isolated_home() | {
        "ANSIBLE_COLLECTIONS_PATH": str(place),
        "ANSIBLE_CONFIG": str(empty / "ansible.cfg"),
    }
    # Forced: the development environment holds a link to the checkout, which counts as installed.
    run(
        [BIN / "ansible-galaxy", "collection", "install", tarball, "-p", place, "--offline", "--force"],
        cwd=empty,
        env=environment,
    )
    collection = place / "ansible_collections" / "umccr" / "pcgr"
    for kind, names in documented(collection).items():
        output = run(
            [BIN / "ansible-doc", "--json", "--type", kind, *names],
            cwd=empty,
            env=environment | {"ANSIBLE_DEPRECATION_WARNINGS": "false", "ANSIBLE_LOCALHOST_WARNING": "false"},
        )
        shown = json.loads(output)
        for name in names:
            entry = shown.get(name, {})
            if not entry or "error" in entry or (kind != "role" and not entry.get("doc")):
                problem = entry.get("error", "nothing")
                raise GateError(f"{name}: {kind} documentation: found {problem}, allowed a readable DOCUMENTATION")
    playbooks = sorted(path.stem for path in (collection / "playbooks").glob("*.yml"))
    if not playbooks:
        raise GateError("artifact: playbooks: found none, allowed at least one")
    for name in playbooks:
        run(
            [BIN / "ansible-playbook", "--syntax-check", "-i", "localhost,", f"{COLLECTION}.{name}"],
            cwd=empty,
            env=environment,
        )


def documented(collection: Path) -> dict[str, list[str]]:
    """Return the full names of everything in `collection` that ansible-doc shows, by the type it calls them."""
    found = {
        kind: sorted(
            f"{COLLECTION}.{path.stem}"
            for path in (collection / "plugins" / folder).glob("*.py")
            if not path.name.startswith("_")
        )
        for folder, kind in DOCUMENTED.items()
    }
    found["role"] = sorted(
        f"{COLLECTION}.{path.parents[1].name}" for path in collection.glob("roles/*/meta/argument_specs.yml")
    )
    return {kind: names for kind, names in found.items() if names}


GATES: dict[str, Callable[[], None]] = {"importer": importer, "docs": docs, "smoke": smoke, "sanity": sanity}


def main() -> int:
    """Run the gates named on the command line; return 1 if one of them finds something."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gates", nargs="+", choices=[*GATES, "all"], help="gates to run")
    parser.add_argument("--test", action="append", help="with sanity: run only this test (may be repeated)")
    arguments = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name in GATES if "all" in arguments.gates else arguments.gates:
        started = time.monotonic()
        try:
            sanity(arguments.test) if name == "sanity" else GATES[name]()
        except GateError as problem:
            failed = 1
            print(f"{problem}\ngate {name}: failed", file=sys.stderr)
        else:
            print(f"gate {name}: passed in {time.monotonic() - started:.0f} s")
    return failed


if __name__ == "__main__":
    sys.exit(main())
