"""Container images of plain systems with systemd, as test hosts: `python -m harness.containers debian-12 ...` prints names.

mmdebstrap builds the file trees, which are cached and imported into the docker daemon that DOCKER_HOST names, so no
registry is needed. They are as bare as a machine image: they have Python, but nothing that the roles install.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from harness.images import CACHE, prepare_mirror
from harness.process import ROOT
from localcloud import buildlock, hostapt

# System, named as in os-release -> suite of its package archive.
SUITES = {"debian-12": "bookworm", "debian-13": "trixie", "ubuntu-22.04": "jammy", "ubuntu-24.04": "noble"}
# Packages that the systems' cloud images have too, without sudo: tasks in a container run as root.
PACKAGES = ("ca-certificates", "dbus", "iproute2", "procps", "python3", "python3-apt", "systemd-sysv", "tzdata")
UBUNTU, UBUNTU_SUITES = "http://archive.ubuntu.com/ubuntu", ("jammy", "noble")
UBUNTU_KEYS = Path("/usr/share/keyrings/ubuntu-archive-keyring.gpg")


def sources(suite: str) -> dict[str, str]:
    """Return apt's sources for a suite, file name -> text, derived from the host's; empty if mmdebstrap's defaults suffice."""
    if suite in UBUNTU_SUITES:
        pockets = " ".join([suite, f"{suite}-updates", f"{suite}-security"])
        stanza = f"Types: deb\nURIs: {UBUNTU}\nSuites: {pockets}\nComponents: main universe\nSigned-By: {UBUNTU_KEYS}\n"
        return {"ubuntu.sources": stanza}
    return {name: text.replace(hostapt.SUITE, suite) for name, text in hostapt.read().sources.items()}


def tree(system: str) -> Path:
    """Return a tar of the system's files, built if its recipe has changed."""
    suite = SUITES[system]
    lists, options, authorities = sources(suite), hostapt.read().options, hostapt.certificate_authorities()
    packages = (*PACKAGES, "apt", "ubuntu-keyring") if suite in UBUNTU_SUITES else PACKAGES
    recipe = json.dumps([packages, suite, lists, options, {n: t.decode("latin-1") for n, t in authorities.items()}])
    target = CACHE / f"container-{system}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.tar"
    CACHE.mkdir(parents=True, exist_ok=True)
    with buildlock.exclusive_lock(CACHE / f".container-{system}.lock", report, f"the image of {system}"):
        if not target.exists():
            report(f"packages of {system}")
            with tempfile.TemporaryDirectory() as folder:
                for name, text in lists.items():
                    Path(folder, name).write_text(text)
                Path(folder, "trusted").mkdir()
                for name, content in authorities.items():
                    Path(folder, "trusted", name).write_bytes(content)
                part = target.with_suffix(".part")
                command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(packages)}"]
                command += [f"--aptopt={option}" for option in options]
                command += [f"--customize-hook=sync-in {folder}/trusted /usr/local/share/ca-certificates"]
                command += ['--customize-hook=chroot "$1" update-ca-certificates', "--format=tar"]
                command += [suite, str(part), *(str(Path(folder, name)) for name in lists)]
                subprocess.run(command, check=True, stdout=sys.stderr)
                part.replace(target)
    return target


def image(system: str) -> str:
    """Import the system's image into docker if it is missing; return its name."""
    archive = tree(system)
    name = f"umccr/pcgr-test:{archive.stem.removeprefix('container-')}"
    known = subprocess.run(["docker", "image", "inspect", name], capture_output=True, check=False)
    if known.returncode:
        report(f"importing {name}")
        subprocess.run(["docker", "import", str(archive), name], check=True, stdout=subprocess.DEVNULL)
    return name


def report(text: str) -> None:
    """Print a line of progress to stderr."""
    print(f"containers: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    os.chdir(ROOT)
    prepare_mirror(CACHE / "mirror.log", report)
    for wanted in sys.argv[1:]:
        print(image(wanted))
