"""Bringing reference data: the module databundle beside upstream's documented commands and the predecessor's pipe.

Same files, same run, same machine, servers on loopback in a process of their own. Every contender starts with an empty
folder and all data of earlier ones on the disk; wall seconds until its last process has ended (ours ends with the data
flushed to the disk and renamed into place, the others do not flush). The last line is the figures as JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import os
import platform
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from support.module_runner import command

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "umccr.pcgr/bench"
DATE, ASSEMBLY = "20260620", "grch38"
MIB = 1 << 20
# What throttled servers give: a connection to a university's server, and a mirror's share of the line.
PER_CONNECTION, IN_ALL = 25_000_000, 100_000_000  # bytes a second
CUTS = 20
SMALL_FILES = 2000
POLL_SECONDS = 0.05


@dataclass
class Figures:
    """Of one contender's runs."""

    seconds: list[float] = field(default_factory=list)
    peak_mb: list[float] = field(default_factory=list)
    peak_disk: list[float] = field(default_factory=list)  # bytes

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


# ---- the data


def make_archive(gib: float, console: Console) -> tuple[Path, Path]:
    """A folder shaped like a reference bundle, of about `gib` GiB when packed, and its archive; made once, then cached.

    Four fifths are files that are compressed already (bgzipped VCF, FASTA.gz, TSV.gz: random bytes stand for them), the
    rest are tables that shrink to a third, and thousands of small files (a VEP cache has 14,000 in 26 GB).
    """
    recipe = f"{inspect.getsource(make_archive)} {SMALL_FILES}"
    home = CACHE / f"{hashlib.sha256(recipe.encode()).hexdigest()[:8]}-{gib:g}"
    archive, tree = home / "bundle.tgz", home / "tree"
    if archive.exists():
        return archive, tree
    console.print(f"making {gib:g} GiB of data (once) ...")
    shutil.rmtree(home, ignore_errors=True)
    data = tree / "data" / ASSEMBLY
    chance = random.Random(1)
    total = int(gib * 1024 * MIB)

    def noise(path: Path, size: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as out:
            while size > 0:
                out.write(chance.randbytes(min(size, 4 * MIB)))
                size -= 4 * MIB

    for name, share in {
        "variant/vcf/clinvar/clinvar.vcf.gz": 0.08,
        "variant/vcf/dbnsfp/dbnsfp.vcf.gz": 0.40,
        "misc/fasta/assembly/assembly.fa.gz": 0.20,
        "gene/tsv/gene_transcript_xref.tsv.gz": 0.10,
    }.items():
        noise(data / name, int(total * share))
    genes = [f"GENE{number}\tENSG{number:011}\tprotein_coding" for number in range(2000)]
    table = data / "biomarker/tsv/evidence.tsv"
    table.parent.mkdir(parents=True)
    with table.open("w") as out:
        for _unused in range(int(total * 0.15 * 3 / 90)):
            out.write(
                f"{chance.choice(genes)}\t{chance.randrange(1 << 40)}\t{chance.random():.4f}\tpathogenic evidence\n"
            )
    for number in range(SMALL_FILES):
        size = chance.randrange(200, int(total * 0.07 / SMALL_FILES * 2))
        noise(data / f"other/{number % 50:02}/{number:05}.gz", size)
    (data / ".PCGR_BUNDLE_VERSION").write_text(f"{DATE}\n")
    part = archive.with_suffix(".part")
    with part.open("wb") as out:
        tar = subprocess.Popen(["tar", "cf", "-", "data"], cwd=tree, stdout=subprocess.PIPE)
        subprocess.run(["gzip", "-6"], stdin=tar.stdout, stdout=out, check=True)
        if tar.wait():
            raise SystemExit("tar failed")
    part.rename(archive)
    return archive, tree


# ---- the server


@contextmanager
def server(folder: Path, *, throttled: bool) -> Iterator[str]:
    """An HTTP server with ranges for the files of `folder`; yields its address."""
    command = [sys.executable, str(Path(__file__).with_name("server.py")), str(folder)]
    command += [f"{PER_CONNECTION}", f"{IN_ALL}"] if throttled else []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.terminate()
        process.wait()


def sent(url: str) -> int:
    """Bytes of files that the server has sent so far."""
    return int(subprocess.run(["wget", "-qO-", f"{url}/-sent"], capture_output=True, check=True).stdout)


# ---- the contenders


def module(url: str, folder: Path, sha256: str | None) -> list[str]:
    """Command that runs the module as Ansible would on a target."""
    entry = {ASSEMBLY: {"file": "bundle.tgz", "url": f"{url}/bundle.tgz", "sha256": sha256}}
    release = {
        "release": "bench",
        "assemblies": [ASSEMBLY],
        "bundle": {
            "date": DATE,
            "version_file": "data/{assembly}/.PCGR_BUNDLE_VERSION",
            "version_text": DATE,
            "archives": entry,
        },
        "vep": {"location": "none", "release": 0, "archives": {}},
    }
    arguments: dict[str, Any] = {"root": str(folder), "release": release, "assemblies": [ASSEMBLY], "space_factor": 1.5}
    arguments["checksums"] = str(folder.parent / "checksums.json")
    return command("databundle", **arguments)


def contenders(url: str, folder: Path, tree: Path, sha256: str) -> dict[str, list[str]]:
    """Command of each, to be run in the empty `folder`."""
    there = f"{url}/bundle.tgz"
    pipes = {
        "upstream: wget, gzip -dc | tar": f"wget -q {there} && gzip -dc bundle.tgz | tar xf -",
        "predecessor: wget -O - | tar xz": f"wget -qO - {there} | tar xzf -",
        "disk's limit: tar c | tar x": f"tar cf - -C {tree} data | tar xf -",
    }
    if shutil.which("igzip"):
        pipes["bare: wget -O - | igzip -dc | tar x"] = f"wget -qO - {there} | igzip -dc | tar xf -"
    shell = ["bash", "-o", "pipefail", "-c"]
    return {"this module": module(url, folder, sha256)} | {name: [*shell, pipe] for name, pipe in pipes.items()}


def measure(command: list[str], folder: Path, figures: Figures) -> None:
    """One run in an empty `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.sync()
    before = _used(folder)
    highest, heaviest = before, 0.0
    done = threading.Event()

    def watch() -> None:
        nonlocal highest, heaviest
        while not done.wait(POLL_SECONDS):
            highest = max(highest, _used(folder))
            heaviest = max(heaviest, _memory(process.pid))

    watcher = threading.Thread(target=watch)
    start = time.monotonic()
    process = subprocess.Popen(command, cwd=folder)
    watcher.start()
    _unused, status, usage = os.wait4(process.pid, 0)
    figures.seconds.append(time.monotonic() - start)
    done.set()
    watcher.join()
    if status:
        raise SystemExit(f"{command}: ended with {status}")
    figures.peak_mb.append(max(heaviest, usage.ru_maxrss / 1024))
    figures.peak_disk.append(max(highest, _used(folder)) - before)


def _used(folder: Path) -> int:
    about = os.statvfs(folder)
    return (about.f_blocks - about.f_bfree) * about.f_frsize


def _memory(pid: int) -> float:
    """MB held by a process and its children (pages that they share counted once, in parts)."""
    kib = 0
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for one in (str(pid), *children):
            kib += int(re.search(r"(?m)^Pss: +(\d+)", Path(f"/proc/{one}/smaps_rollup").read_text())[1])  # type: ignore[index]
    except (OSError, TypeError):  # it has just ended
        return 0.0
    return kib / 1024


def unpacked_size(archive: Path) -> int:
    """Bytes of blocks that the members take."""
    with tarfile.open(archive) as tar:
        return sum(-(-member.size // 4096) * 4096 for member in tar if member.isreg())


def compare(url: str, scene: str, files: tuple[Path, Path, str], runs: int, work: Path) -> dict[str, Figures]:
    """All contenders in turn, `runs` times, so that what slows the machine slows all."""
    _archive, tree, sha256 = files
    folder = work / "run"
    commands = contenders(url, folder, tree, sha256)
    if scene == "throttled":  # where the line is all that counts, the other pipes take as long as upstream's
        commands = {name: command for name, command in commands.items() if name.startswith(("this", "upstream"))}
    found = {name: Figures() for name in commands}
    with Progress(transient=True) as progress:
        task = progress.add_task(scene, total=runs * len(commands))
        for number in range(runs):
            for name, command in commands.items():
                progress.update(task, description=f"{scene}, run {number + 1} of {runs}: {name}")
                measure(command, folder, found[name])
                progress.advance(task)
    shutil.rmtree(folder)
    return found


# ---- cuts


def cut_and_resume(url: str, files: tuple[Path, Path, str], work: Path) -> list[float]:
    """Kill the module at random moments, and each time let it finish; what the second run fetched beyond the rest, in
    shares of the archive. Ends the bench when anything else is found than the old state or the new one.
    """
    archive, _tree, sha256 = files
    size = archive.stat().st_size
    chance = random.Random(2)
    beyond = []
    folder = work / "cut"
    final = folder / "bundles" / DATE / "data" / ASSEMBLY
    with Progress(transient=True) as progress:
        for number in progress.track(range(CUTS), description=f"{CUTS} cuts"):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            start = sent(url)
            stop_at = chance.randrange(size // 50, size)
            process = subprocess.Popen(module(url, folder, sha256))
            while sent(url) - start < stop_at and process.poll() is None:
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            process.wait()
            came = sent(url) - start
            if final.exists() and not (final / ".umccr.pcgr.json").exists():
                raise SystemExit(f"cut {number}: data without a stamp was put in place")
            if final.exists():  # it was quicker than the cut
                continue
            before = sent(url)
            if subprocess.run(module(url, folder, sha256), check=False).returncode:
                raise SystemExit(f"cut {number}: the second run failed")
            if json.loads((final / ".umccr.pcgr.json").read_text())["sha256"] != sha256:
                raise SystemExit(f"cut {number}: another checksum")
            beyond.append((sent(url) - before - (size - came)) / size)
    shutil.rmtree(folder)
    return beyond


# ---- what is printed


def machine() -> str:
    model = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    system = f"Linux {platform.release()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} x {model.split(': ')[1]}, {memory:.0f} GiB, {system}"


def show(console: Console, title: str, found: dict[str, Figures], unpacked: int) -> dict[str, float]:
    """Print a table; return each one's share of upstream's median time."""
    base = next(figures.median for name, figures in found.items() if name.startswith("upstream"))
    table = Table("", "median s", "from", "to", "of upstream", "peak disk / data", title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, figures in found.items():
        low, high = min(figures.seconds), max(figures.seconds)
        disk = statistics.median(figures.peak_disk) / unpacked
        row = (f"{figures.median:.2f}", f"{low:.2f}", f"{high:.2f}", f"{figures.median / base:.3f}", f"{disk:.2f}")
        table.add_row(name, *row)
    console.print(table)
    return {name: figures.median / base for name, figures in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, nargs="+", default=[1, 4], help="sizes of the archives (default: 1 4)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each contender (default: 3)")
    parser.add_argument("--work", type=Path, default=CACHE / "work", help="folder with room for three copies")
    arguments = parser.parse_args()
    for program in ("wget", "gzip", "tar"):
        if not shutil.which(program):
            parser.error(f"{program} is not on this machine")
    console = Console(width=110)
    console.print(f"machine: {machine()}")
    console.print(f"runs: {arguments.runs} of each, in turn")
    result: dict[str, Any] = {"machine": machine(), "runs": arguments.runs}
    work = arguments.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    peak = 0.0
    for number, gib in enumerate(arguments.gib):
        archive, tree = make_archive(gib, console)
        sha256 = hashlib.file_digest(archive.open("rb"), "sha256").hexdigest()
        unpacked = unpacked_size(archive)
        size = archive.stat().st_size
        console.print(f"archive: {size / 2**30:.2f} GiB, unpacked {unpacked / 2**30:.2f} GiB, sha256 {sha256[:16]}...")
        files = (archive, tree, sha256)
        with server(archive.parent, throttled=False) as url:
            found = compare(url, "unthrottled", files, arguments.runs, work)
            shares = show(console, f"{gib:g} GiB, server as fast as it can", found, unpacked)
            ours = found["this module"]
            peak = max(peak, *ours.peak_mb)
            result[f"unthrottled_ratio_{gib:g}_gib"] = round(shares["this module"], 3)
            result[f"unthrottled_seconds_{gib:g}_gib"] = round(ours.median, 2)
            result[f"peak_disk_ratio_{gib:g}_gib"] = round(max(ours.peak_disk) / unpacked, 3)
            if number == 0:
                beyond = cut_and_resume(url, files, work)
                console.print(
                    f"{len(beyond)} of {CUTS} cuts came before the end; always the old state or the new one; fetched"
                    f" beyond what was missing: median {statistics.median(beyond):.2%}, most {max(beyond):.2%} of the archive"
                )
                result["resumed_beyond_most"] = round(max(beyond), 4)
        if number == 0:
            with server(archive.parent, throttled=True) as url:
                found = compare(url, "throttled", files, arguments.runs, work)
            title = f"{gib:g} GiB, {PER_CONNECTION // 10**6} MB/s a connection, {IN_ALL // 10**6} MB/s in all"
            shares = show(console, title, found, unpacked)
            peak = max(peak, *found["this module"].peak_mb)
            result["throttled_ratio"] = round(shares["this module"], 3)
            result["throttled_seconds"] = round(found["this module"].median, 2)
    result["unthrottled_ratio"] = max(value for key, value in result.items() if key.startswith("unthrottled_ratio_"))
    result["peak_mb"] = round(peak)
    console.print(f"peak memory of the module: {peak:.0f} MB")
    shutil.rmtree(work)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
