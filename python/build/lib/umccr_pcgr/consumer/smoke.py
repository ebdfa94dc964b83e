"""The smoke test: does the installed runtime work here? Runs without a sample, in the same isolation as a sample.

One run of a shell script inside asks all questions; each answer becomes one line. If all are good, a record lists the files that
were tested with their checksums, in the form that ``sha256sum --check`` reads.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from umccr_pcgr.samples.dialect import Inputs, arguments
from umccr_pcgr.samples.model import Transient

from .config import Image, Settings
from .runtime import BUNDLE, INPUTS, OUTPUTS, VEP, WORK_PREFIX, Job, Runtime, error_line, last_line, log_tail
from .workspace import wipe

RECORD = "smoke.sha256"  # in state_dir
STAMP = ".umccr.pcgr.json"  # says what a folder was built from; modules databundle and python_app write it
TIMEOUT = 900.0  # seconds for all questions; each takes seconds, the first from a cold disk more
# A VCF without variants: the tool passes the checks of its data, finds nothing to validate, and exits.
VCF = (
    "##fileformat=VCFv4.2\n##contig=<ID=1,length=248956422>\n"
    '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">\n'
    "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tSMOKE\n"
)
PASSED_CHECKS = "Validate input data"  # logged once bundle and VEP cache are found good (all releases from 1.0.0)
OWNED = "owned"  # file that a run makes among the outputs
SHOWN = 200  # characters of an answer that are shown

Verdict = tuple[bool, str]  # good, what was seen


@dataclass(frozen=True)
class Question:
    """A command inside, and what its exit code and output say."""

    about: str
    argv: tuple[str, ...]
    judge: Callable[[int, str], Verdict]


def smoke(
    settings: Settings, release: Mapping[str, Any], image: Image, runtime: Runtime, files: list[Path]
) -> Iterator[tuple[bool, str]]:
    """Yield one verdict and line per question; if all are good, write the record of `files` and the stamps of the data."""
    record = settings.state_dir / RECORD
    record.unlink(missing_ok=True)
    attempt = f"smoke{secrets.token_hex(6)}"
    work = settings.work_dir / f"{WORK_PREFIX}{attempt}"
    good = True
    try:
        runtime.check()
        yield True, f"runtime: {image.kind} {image.image}"
        for folder in (work, work / "inputs", work / "outputs"):
            folder.mkdir(mode=0o700)
        (work / "inputs" / "smoke.vcf").write_text(VCF, encoding="ascii")
        questions = [
            *_versions(release),
            *_refusals(release),
            *_data(release, image, settings),
            *_isolation(work),
        ]
        job = Job(attempt, ["sh", "-c", _script(questions, attempt)], work / "inputs", work / "outputs", work / "log")
        runtime.run(job, TIMEOUT, lambda: None)
        answers = _answers(job.log.read_text("utf-8", "replace"), attempt)
        for number, question in enumerate(questions):
            fine, seen = question.judge(*answers[number]) if number in answers else (False, _silence(job.log))
            good = good and fine
            yield fine, f"{question.about}: {seen}"
    except Transient as error:
        good = False
        yield False, f"{error.stage}: {error}"
    except OSError as error:
        good = False
        yield False, f"{error.filename}: {error.strerror}"
    finally:
        wipe(work)
    if good:
        proven = [path for path in [*files, *_stamps(settings)] if path.is_file()]
        lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path}\n" for path in proven]
        record.write_text("".join(lines), encoding="utf-8")


def _stamps(settings: Settings) -> list[Path]:
    data = [*settings.refdata_dir.glob(f"data/*/{STAMP}"), *settings.vep_dir.glob(f"homo_sapiens/*/{STAMP}")]
    return [Path(sys.prefix, STAMP), *sorted(data)]


def _script(questions: list[Question], word: str) -> str:
    lines = [
        "exec 2>&1"
    ]  # docker transfers the two outputs separately, so that errors could follow the line that ends them
    for number, question in enumerate(questions):
        lines += [f"echo '{word} {number}'", f"{shlex.join(question.argv)}; code=$?", f"echo; echo '{word} end' $code"]
    return "\n".join(lines)


def _answers(log: str, word: str) -> dict[int, tuple[int, str]]:
    """Return number of the question -> exit code and output."""
    found = re.findall(rf"^{word} (\d+)\n(.*?)\n{word} end (\d+)$", log, re.MULTILINE | re.DOTALL)
    return {int(number): (int(code), text) for number, text, code in found}


def _silence(log: Path) -> str:
    return f"no answer within {TIMEOUT:.0f} s; last line: {_last(' '.join(log_tail(log, lines=1)))}"


def _last(text: str) -> str:
    """Return the gist of an answer: its error, else its last line."""
    lines = text.splitlines()
    return (error_line(lines) or last_line(lines))[:SHOWN]


def _versions(release: Mapping[str, Any]) -> Iterator[Question]:
    known = {"pcgr": release["release"]} | release.get("versions", {})
    for name, command in release["dialect"]["commands"].items():
        wanted = f"{name} {known.get(name, '')}".strip()

        def judge(code: int, text: str, wanted: str = wanted) -> Verdict:
            seen = [line.strip() for line in text.splitlines() if line.strip()]
            return code == 0 and wanted in seen, f"found {_last(text)!r}, allowed {wanted!r}"

        if not command.get("no_version"):
            yield Question(f"{name} --version", (command["executable"], "--version"), judge)


def _refusals(release: Mapping[str, Any]) -> Iterator[Question]:
    def refused(saying: str) -> Callable[[int, str], Verdict]:
        return lambda code, text: (
            code == 2 and saying in text,
            f"exit code {code} (2 is right), {saying!r} {'printed' if saying in text else f'not printed, but {_last(text)!r}'}",
        )

    for name, command in release["dialect"]["commands"].items():
        yield Question(f"{name} without input is refused", (command["executable"],), refused("required"))
        argv = [word.replace("grch38", "grch36") for word in _argv(release, name, "grch38", None)]
        yield Question(f"{name} with assembly grch36 is refused", tuple(argv), refused("invalid choice"))


def _argv(release: Mapping[str, Any], command: Any, assembly: str, pcgrr: str | None) -> list[str]:
    return arguments(
        release["dialect"],
        command,
        {},
        sample_id=f"smoke-{assembly}",
        assembly=assembly,
        inputs=Inputs(vcf=f"{INPUTS}/smoke.vcf", cna=None, fusion=None, expression=None),
        refdata_dir=BUNDLE,
        vep_dir=VEP,
        output_dir=OUTPUTS,
        pcgrr_conda=pcgrr,
    )


def _data(release: Mapping[str, Any], image: Image, settings: Settings) -> Iterator[Question]:
    def judge(code: int, text: str) -> Verdict:
        passed = PASSED_CHECKS in text
        return passed, "bundle and VEP cache are accepted" if passed else f"exit code {code}, {_last(text)!r}"

    for assembly in settings.assemblies:
        for name in release["dialect"]["commands"]:
            argv = _argv(release, name, assembly, image.prefixes.get("pcgrr"))
            yield Question(f"{name} starts with the data of {assembly}", tuple(argv), judge)


def _isolation(work: Path) -> Iterator[Question]:
    def only_loopback(code: int, text: str) -> Verdict:
        names = re.findall(r"^\s*([^\s:]+):", text, re.MULTILINE)
        return code == 0 and names == ["lo"], f"interfaces {', '.join(names) or _last(text)} (lo is right)"

    def read_only(code: int, text: str) -> Verdict:
        found = {words[1]: words[3].split(",") for line in text.splitlines() if len(words := line.split()) > 3}
        loose = [place for place in (BUNDLE, VEP, INPUTS) if "ro" not in found.get(place, [])]
        return code == 0 and not loose, f"not read-only: {', '.join(loose)}" if loose else "mounted ro"

    def owned(code: int, text: str) -> Verdict:
        path = work / "outputs" / OWNED
        if not path.exists():
            return False, f"no file was written: {_last(text)}"
        ids, wanted = (path.stat().st_uid, path.stat().st_gid), (os.getuid(), os.getgid())
        return ids == wanted, f"owner and group {ids[0]}:{ids[1]}, wanted {wanted[0]}:{wanted[1]}"

    # only built-in commands of the shell: an image need not have others
    show = ("sh", "-c", 'while read -r line; do echo "$line"; done <"$1"', "sh")
    yield Question("network is off", (*show, "/proc/net/dev"), only_loopback)
    yield Question("data and inputs are read-only", (*show, "/proc/mounts"), read_only)
    yield Question("outputs belong to the consumer", ("sh", "-c", ': >"$1"', "sh", f"{OUTPUTS}/{OWNED}"), owned)
