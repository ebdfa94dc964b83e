"""Build what a region needs before it starts: the base image, and the files that instances fetch from its mirror."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from pathlib import Path

from harness.process import ROOT, Progress, follow, run
from localcloud import buildlock
from localcloud.image import build_base_image

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "umccr.pcgr"
MIRROR = CACHE / "mirror"
# The oldest Python of the targets (Ubuntu 22.04). The wheels are pure Python, so they serve newer versions too.
TARGET_PYTHON = "3.10"


def prepare_images(log: Path, progress: Progress) -> None:
    """Build the mirror's files and the base image, each only if its recipe has changed; details go to `log`."""
    prepare_mirror(log, progress)
    build_base_image(CACHE, progress)


def prepare_mirror(log: Path, progress: Progress) -> None:
    """Fill MIRROR with what instances fetch, the rehearsal's files and wheels, each only if its recipe has changed."""
    MIRROR.mkdir(parents=True, exist_ok=True)
    for line in follow(
        [sys.executable, "-m", "rehearsal.build", "--out", MIRROR], log, what="building the rehearsal image"
    ):
        progress(line)
    with buildlock.exclusive_lock(MIRROR / ".wheels.lock", progress, "the consumer's wheels"):
        prepare_wheels(log, progress)


def prepare_wheels(log: Path, progress: Progress) -> None:
    """Fill MIRROR/wheels with the consumer's hashed requirements, for instances that reach no package index."""
    requirements = ROOT / "roles/consumer/files/requirements.txt"
    stamp = hashlib.sha256(requirements.read_bytes()).hexdigest()
    wheels = MIRROR / "wheels"
    if (wheels / ".stamp").is_file() and (wheels / ".stamp").read_text() == stamp:
        return
    progress("downloading the consumer's wheels")
    fresh = MIRROR / "wheels.new"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    listing = fresh / "requirements.txt"
    # pip would evaluate the conditions for the Python that runs it, not for the target's
    listing.write_text(re.sub(r"(?m) ;.*?(?= \\$)", "", requirements.read_text()))
    pip: list[str | Path] = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    pip += ["--only-binary=:all:", "--python-version", TARGET_PYTHON, "-r", listing, "-d", fresh]
    run(pip, log, what="downloading the consumer's wheels")
    links = "".join(f'<a href="{wheel.name}">{wheel.name}</a>\n' for wheel in sorted(fresh.glob("*.whl")))
    (fresh / "index.html").write_text(links)
    (fresh / ".stamp").write_text(stamp)
    shutil.rmtree(wheels, ignore_errors=True)
    fresh.rename(wheels)
