"""Reference data in a read-only compressed image, beside the same data in ext4: what it saves and what reading it costs.

An installation in small: a bundle (as tests/bench/databundle.py makes it) and a VEP cache. Every image is a file behind a
loop device without the page cache below it, so that bytes read from the device are what a volume restored from a snapshot
would have to fetch first. Needs root. The last line is the figures as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from databundle import CACHE, DATE, machine, make_archive
from rich.console import Console
from rich.table import Table

MIB = 1 << 20
# Of an installation of PCGR 2.3 for one assembly, both as downloaded: 7.1 GB bundle, 24 GB VEP cache.
BUNDLE_SHARE = 7.1 / (7.1 + 24)
VEP_FILES = 2000
QUERIES = 2000  # of one run: a tabix query reads one BGZF block or two
BGZF_BLOCK = 65536
SMALL = 300
BASE = "ext4"
FORMATS: dict[str, list[str]] = {
    BASE: [],
    "erofs, not compressed": ["mkfs.erofs", "{image}", "{tree}"],
    "erofs lz4": ["mkfs.erofs", "-zlz4", "{image}", "{tree}"],
    "erofs lz4hc": ["mkfs.erofs", "-zlz4hc,9", "{image}", "{tree}"],
    "erofs zstd, 64 KiB": ["mkfs.erofs", "-zzstd", "-C65536", "{image}", "{tree}"],
    "squashfs lz4": ["mksquashfs", "{tree}", "{image}", "-comp", "lz4", "-Xhc", "-b", "128K", "-no-progress"],
    "squashfs zstd": ["mksquashfs", "{tree}", "{image}", "-comp", "zstd", "-b", "128K", "-no-progress"],
}


@dataclass
class Figures:
    """Of one format: image size in bytes, seconds of packing, and of each kind of reading seconds and bytes from the device."""

    size: int
    packed: float
    seconds: dict[str, list[float]] = field(default_factory=dict)
    read: dict[str, list[int]] = field(default_factory=dict)


# ---- the data


def make_tree(gib: float, home: Path, console: Console) -> Path:
    """An installation of about `gib` GiB: the bundle's files are links to the cached ones; of a VEP cache, whose members
    are gzip files without exception, random bytes stand for them."""
    _archive, bundle = make_archive(round(gib * BUNDLE_SHARE, 3), console)
    tree = home / "tree"
    shutil.copytree(bundle, tree / "bundles" / DATE, copy_function=os.link)
    chance = random.Random(3)
    cache = tree / "vep/115/homo_sapiens/115_GRCh38"
    total = int(gib * (1 - BUNDLE_SHARE) * 1024 * MIB)
    for number in range(VEP_FILES):
        chromosome = cache / f"{number % 24 + 1}"
        chromosome.mkdir(parents=True, exist_ok=True)
        # Half of a cache are the variants of a chromosome in one file, all_vars.gz; the rest are regions.
        size = total // 2 // 24 if number < 24 else chance.randrange(200, int(total / (VEP_FILES - 24)))
        name = "all_vars.gz" if number < 24 else f"{number}-{number + 1}.gz"
        (chromosome / name).write_bytes(chance.randbytes(size))
    return tree


def pack(name: str, tree: Path, image: Path) -> float:
    """Make an image; seconds until it is on the disk."""
    start = time.monotonic()
    if name == BASE:
        used = sum(-(-path.lstat().st_size // 4096) * 4096 + 512 for path in tree.rglob("*"))
        with image.open("wb") as file:
            file.truncate(int(used * 1.1) + 64 * MIB)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-d", tree, image], check=True)
    else:
        command = [part.format(image=image, tree=tree) for part in FORMATS[name]]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    with image.open("rb") as file:
        os.fsync(file.fileno())
    return time.monotonic() - start


@contextmanager
def mounted(image: Path, place: Path) -> Iterator[Path]:
    """The image mounted read-only at `place`, nothing of it in memory; yields the device's statistics file."""
    command = ["losetup", "--find", "--show", "--read-only", "--direct-io=on", image]
    device = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    try:
        place.mkdir(exist_ok=True)
        kind = subprocess.run(["blkid", "-o", "value", "-s", "TYPE", image], check=True, capture_output=True, text=True)
        subprocess.run(["mount", "-t", kind.stdout.strip(), "-o", "ro,noatime", device, place], check=True)
        try:
            yield Path("/sys/block") / Path(device).name / "stat"
        finally:
            subprocess.run(["umount", place], check=True)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


# ---- reading


def regions(tree: Path, chance: random.Random) -> None:
    """Random BGZF blocks of the large files, as tabix, VEP and vcfanno ask for them."""
    large = [path for path in sorted(tree.rglob("*.gz")) if path.stat().st_size > 4 * MIB]
    handles = [os.open(path, os.O_RDONLY) for path in large]
    sizes = [os.fstat(handle).st_size for handle in handles]
    for number in chance.choices(range(len(large)), weights=sizes, k=QUERIES):
        os.pread(handles[number], BGZF_BLOCK, chance.randrange(sizes[number]))
    for handle in handles:
        os.close(handle)


def small(tree: Path, chance: random.Random) -> None:
    """Small files wholly, as VEP reads the regions of its cache."""
    found = [path for path in sorted(tree.rglob("*.gz")) if path.stat().st_size < 4 * MIB]
    for path in chance.sample(found, SMALL):
        path.read_bytes()


def tables(tree: Path, _chance: random.Random) -> None:
    """The plain tables wholly, as R reads them: all that a compressed image makes smaller."""
    for path in sorted(tree.rglob("*.tsv")):
        with path.open("rb", buffering=0) as file:
            while file.read(MIB):
                pass


KINDS: dict[str, Callable[[Path, random.Random], None]] = {"regions": regions, "small files": small, "tables": tables}


def read(image: Path, place: Path, seed: int, figures: Figures) -> None:
    """One run of each kind of reading, each with cold caches."""
    for kind, way in KINDS.items():
        with mounted(image, place) as about:
            before, start = int(about.read_text().split()[2]), time.monotonic()
            way(place, random.Random(seed))
            figures.seconds.setdefault(kind, []).append(time.monotonic() - start)
            figures.read.setdefault(kind, []).append((int(about.read_text().split()[2]) - before) * 512)


# ---- what is printed


def show(console: Console, found: dict[str, Figures]) -> None:
    base = found[BASE]
    table = Table("", "GiB", "of ext4", "packed in s", *(f"{kind}: s (MB read)" for kind in KINDS))
    for column in table.columns[1:]:
        column.justify = "right"
    for name, figures in found.items():
        row = [f"{figures.size / 2**30:.3f}", f"{figures.size / base.size:.3f}", f"{figures.packed:.0f}"]
        for kind in KINDS:
            seconds = figures.seconds[kind]
            spread = f"{min(seconds):.2f}-{max(seconds):.2f}"
            row.append(
                f"{statistics.median(seconds):.2f} [{spread}] ({statistics.median(figures.read[kind]) / 1e6:.0f})"
            )
        table.add_row(name, *row)
    console.print(table, markup=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, default=1, help="size of the installation (default: 1)")
    parser.add_argument("--runs", type=int, default=5, help="runs of each kind of reading (default: 5)")
    parser.add_argument("--work", type=Path, default=CACHE / "work-dataimage", help="folder with room for ten copies")
    arguments = parser.parse_args()
    if os.geteuid():
        parser.error("not root: file systems are mounted")
    for program, package in {"mkfs.erofs": "erofs-utils", "mksquashfs": "squashfs-tools"}.items():
        if not shutil.which(program):
            parser.error(f"{program} is not on this machine (package {package})")
    console = Console(width=170)
    work = arguments.work.absolute()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    console.print(f"machine: {machine()}")
    tree = make_tree(arguments.gib, work, console)
    plain = sum(path.stat().st_size for path in tree.rglob("*.tsv"))
    all_bytes = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file())
    console.print(
        f"input: {all_bytes / 2**30:.2f} GiB in {sum(path.is_file() for path in tree.rglob('*'))} files,"
        f" {plain / all_bytes:.0%} of the bytes in plain tables, the rest compressed already"
    )
    found: dict[str, Figures] = {}
    for name in FORMATS:
        image = work / f"{name.replace(' ', '-')}.img"
        try:
            seconds = pack(name, tree, image)
            with mounted(image, work / "mnt"):
                different = subprocess.run(
                    ["diff", "-r", "-q", "--exclude=lost+found", tree, work / "mnt"],
                    check=False,
                    capture_output=True,
                    text=True,
                )
        except subprocess.CalledProcessError as error:
            console.print(f"{name}: not to be had here: {(error.stderr or str(error)).strip().splitlines()[-1]}")
            image.unlink(missing_ok=True)
            continue
        if different.returncode:
            raise SystemExit(f"{name}: the image is not the tree: {different.stdout.splitlines()[:3]}")
        found[name] = Figures(image.stat().st_blocks * 512, seconds)
    console.print(f"runs: images packed and compared with their input once, then {arguments.runs} of reading, in turn")
    for run in range(arguments.runs):
        for name, figures in found.items():
            read(work / f"{name.replace(' ', '-')}.img", work / "mnt", run, figures)
    show(console, found)
    base = found[BASE]
    result: dict[str, Any] = {"machine": machine(), "runs": arguments.runs, "gib": arguments.gib}
    result["plain_share"] = round(plain / all_bytes, 3)
    for name, figures in found.items():
        result[name] = {"size_ratio": round(figures.size / base.size, 3), "pack_seconds": round(figures.packed, 1)}
        for kind in KINDS:
            ratio = statistics.median(figures.seconds[kind]) / statistics.median(base.seconds[kind])
            bytes_ratio = statistics.median(figures.read[kind]) / statistics.median(base.read[kind])
            result[name] |= {f"{kind}_seconds_ratio": round(ratio, 2), f"{kind}_bytes_ratio": round(bytes_ratio, 2)}
    shutil.rmtree(work)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
