"""Container images of plain systems with systemd, as stand-ins for machines: `containers.py debian-12 ...` prints their names.

Trees by mmdebstrap, cached, and imported into the docker daemon that DOCKER_HOST names: no registry is needed, and they are as
bare as an image of a machine is, with a Python but nothing of what the roles bring.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import road

from localcloud import buildlock, hostapt

# System, as os-release names it -> suite of its archive.
SUITES = {"debian-12": "bookworm", "debian-13": "trixie", "ubuntu-22.04": "jammy", "ubuntu-24.04": "noble"}
# What the systems' own cloud images have too. sudo is not here: in a container one is root.
PACKAGES = ("ca-certificates", "dbus", "iproute2", "procps", "python3", "python3-apt", "systemd-sysv", "tzdata")
UBUNTU, UBUNTU_SUITES = "http://archive.ubuntu.com/ubuntu", ("jammy", "noble")
UBUNTU_KEYS = Path("/usr/share/keyrings/ubuntu-archive-keyring.gpg")


def sources(suite: str) -> dict[str, str]:
    """File name -> text of apt's sources: this host's, turned to the suite; empty where mmdebstrap's own will do."""
    if suite in UBUNTU_SUITES:
        pockets = " ".join([suite, f"{suite}-updates", f"{suite}-security"])
        stanza = f"Types: deb\nURIs: {UBUNTU}\nSuites: {pockets}\nComponents: main universe\nSigned-By: {UBUNTU_KEYS}\n"
        return {"ubuntu.sources": stanza}
    return {name: text.replace(hostapt.SUITE, suite) for name, text in hostapt.read().sources.items()}


def tree(system: str) -> Path:
    """The system's files as a tar, made when its recipe has changed."""
    suite = SUITES[system]
    lists, options, authorities = sources(suite), hostapt.read().options, hostapt.certificate_authorities()
    packages = (*PACKAGES, "apt", "ubuntu-keyring") if suite in UBUNTU_SUITES else PACKAGES
    recipe = json.dumps([packages, suite, lists, options, {n: t.decode("latin-1") for n, t in authorities.items()}])
    target = road.CACHE / f"container-{system}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.tar"
    road.CACHE.mkdir(parents=True, exist_ok=True)
    with buildlock.held(road.CACHE / f".container-{system}.lock", say, f"the image of {system}"):
        if not target.exists():
            say(f"packages of {system}")
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
    """Name of the system's image; docker has it afterwards."""
    archive = tree(system)
    name = f"umccr/pcgr-test:{archive.stem.removeprefix('container-')}"
    known = subprocess.run(["docker", "image", "inspect", name], capture_output=True, check=False)
    if known.returncode:
        say(f"importing {name}")
        subprocess.run(["docker", "import", str(archive), name], check=True, stdout=subprocess.DEVNULL)
    return name


def say(text: str) -> None:
    print(f"containers: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    os.chdir(road.ROOT)
    road.prepare_mirror(road.CACHE / "mirror.log", say)
    for wanted in sys.argv[1:]:
        print(image(wanted))
