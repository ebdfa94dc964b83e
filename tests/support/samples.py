"""Sample tarballs, made in memory."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import tarfile
from collections.abc import Callable
from functools import cache
from typing import Any

from ansible_collections.umccr.pcgr.plugins.module_utils._release import load_release

from umccr_pcgr.consumer.runtime import Job, Run, supervise
from umccr_pcgr.samples.checks import BGZF_END
from umccr_pcgr.samples.genome import LENGTHS
from umccr_pcgr.samples.model import StopReason

KEY = "in/demo-000001-somatic.tar.gz"


# The tool of most tests: it prints what it runs on, then behaves as its mode says. $1 mode, $2 inputs, $3 prefix of the outputs.
# It reports as PCGR 2 does; "old" as PCGR 1.4, "older" as 1.0.
TOOL = r"""
echo "pcgr starts"
acmg() { echo "$(dirname "$1")/$(basename "$1" | sed 's/\.pcgr\./.pcgr_acmg./')"; }
report() { for end in ${4:-.conf.yaml .xlsx .html}; do cat "$2"/*.vcf* | cksum > "$3$end"; done; }
case "$1" in
  good) report "$@"; mkdir "$(dirname "$3")/sub"; chmod 0 "$(dirname "$3")/sub"; echo "Finished PCGR!"; echo "Finished CPSR!" ;;
  old) report "$1" "$2" "$(acmg "$3")" ".vcf.gz .html .flexdb.html"; echo "Finished PCGR!" ;;
  older) report "$1" "$2" "$(acmg "$3")" ".vcf.gz .html .flexdb.html"
    echo "2022-05-24 10:00:00 - pcgr-writer - INFO - Finished" ;;
  long) report "$@"; sleep 3; echo "Finished PCGR!" ;;
  hang) sleep 60 ;;
  lies) echo "Error in validation: nothing works" ;;
  silent) report "$@" ;;
  boasts) echo "Finished PCGR!" ;;
  refuses) echo "ERROR: tumor_site outside range" >&2; exit 1 ;;
  logs) echo "2025-01-01 10:00:00 - pcgr-validate-arguments - INFO - no error so far"
    for text in "" "tumor purity 7 is out of range" ""; do echo "2025-01-01 10:00:01 - pcgr-validate-arguments - ERROR - $text"; done
    exit 1 ;;
  killed) kill -9 $$ ;;
  full) echo "write error: No space left on device"; exit 0 ;;
esac
"""


@cache
def release(name: str = "rehearsal") -> dict[str, Any]:
    """Return a release, as release.json holds it on a host."""
    return load_release(name)


class ScriptedRuntime:
    """The tool as a shell script under the same supervision as docker; `modes` is consumed run by run, the last one stays."""

    def __init__(self, *modes: str) -> None:
        self.modes = list(modes or ("good",))
        self.jobs: list[Job] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        self.cleared = 0
        self.on_run: Callable[[Job], None] = lambda job: None

    def check(self) -> None:
        """Do nothing: the script can always run."""

    def clear(self) -> list[str]:
        """Count the call; there is nothing to clear."""
        self.cleared += 1
        return []

    def run(self, job: Job, timeout: float, stop: StopReason) -> Run:
        """Run the script in the next mode, as the tool would run on the job's inputs."""
        self.jobs.append(job)
        self.on_run(job)
        mode = self.modes.pop(0) if len(self.modes) > 1 else self.modes[0]
        options = dict(zip(job.argv, [*job.argv[1:], ""], strict=True))
        prefix = f"{options['--sample_id']}.{job.argv[0]}.{options['--genome_assembly']}"

        def kill(process: subprocess.Popen[bytes]) -> None:
            self.processes.append(process)
            os.killpg(process.pid, 9)

        command = ["/bin/sh", "-c", TOOL, "tool", mode, str(job.inputs), str(job.outputs / prefix)]
        return supervise(command, job.log, timeout, stop, kill)


def bgzf(data: bytes) -> bytes:
    """Return `data` as BGZF: blocks of gzip that say their size in an extra field, and the empty end block."""
    out = b""
    for start in range(0, len(data), 60000):
        packed = gzip.compress(data[start : start + 60000], mtime=0)
        size = len(packed) + 8 - 1
        out += packed[:3] + b"\x04" + packed[4:10] + b"\x06\x00BC\x02\x00" + size.to_bytes(2, "little") + packed[10:]
    return out + BGZF_END


def vcf(
    *rows: str, assembly: str | None = "grch38", version: str = "4.2", samples: tuple[str, ...] = ("T",), head: str = ""
) -> bytes:
    """Return a small VCF; `rows` are "chromosome position", contig lines are of `assembly`."""
    contigs = (
        "".join(f"##contig=<ID=chr{name},length={size}>\n" for name, size in LENGTHS[assembly or ""].items())
        if assembly
        else ""
    )
    columns = [
        "#CHROM",
        "POS",
        "ID",
        "REF",
        "ALT",
        "QUAL",
        "FILTER",
        "INFO",
        *(["FORMAT", *samples] if samples else []),
    ]
    text = f"##fileformat=VCFv{version}\n{head}{contigs}" + "\t".join(columns) + "\n"
    for row in rows or ("1 1968826", "chr2 15234634"):
        chromosome, position = row.split()
        genotypes = ["GT", *("0/1" for _unused in samples)] if samples else []
        text += "\t".join([chromosome, position, ".", "C", "T", ".", "PASS", "TDP=144;TVAF=0.2", *genotypes]) + "\n"
    return text.encode()


TBI = bgzf(b"TBI\1" + bytes(40))


def files(text: bytes | None = None, **more: bytes) -> dict[str, bytes]:
    """Return the files of a good sample; keyword names have "__" for "."."""
    return {"s.vcf.gz": bgzf(text or vcf()), "s.vcf.gz.tbi": TBI} | {
        name.replace("__", "."): data for name, data in more.items()
    }


def tarball(content: dict[str, bytes] | None = None, *members: tarfile.TarInfo, level: int = 6) -> bytes:
    """Return a gzipped tar of `content`, and of `members` without content behind it."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz", compresslevel=level) as archive:
        for name, data in (files() if content is None else content).items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in members:
            archive.addfile(info)
    return raw.getvalue()


class Make:
    """Builders of inputs, for tests."""

    vcf = staticmethod(vcf)
    bgzf = staticmethod(bgzf)
    files = staticmethod(files)
    tarball = staticmethod(tarball)
    TBI = TBI
    KEY = KEY
    Runtime = ScriptedRuntime
