"""What the project's command-line programs share: argument types, refusals of one line, signals and exit codes."""

from __future__ import annotations

import argparse
import math
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import rich.console

REFUSED = 2
BROKEN_PIPE = 141  # as the shell reports a program that SIGPIPE ended: 128 + 13
# AWS_ENDPOINT_URL and its forms for single services; botocore takes their values unchecked and then fails with a traceback.
ENDPOINT_VARIABLE = re.compile(r"AWS_ENDPOINT_URL(_[A-Z0-9_]+)?")
_ENDPOINT = re.compile(r"https?://[^\s/:@]+(:[0-9]{1,5})?(/\S*)?|https?://\[[0-9a-fA-F:]+\](:[0-9]{1,5})?(/\S*)?")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]|arn:aws[a-z-]*:s3\S+")


def program_name() -> str:
    """Return the running program as the user calls it, for messages and for commands to copy: `pcgr-submit`, `scripts/submit`."""
    path = Path(sys.argv[0])
    found = shutil.which(path.name)
    with suppress(OSError, ValueError):
        if found and path.samefile(found):
            return path.name
        if path.is_absolute():
            below = path.relative_to(Path.cwd())
            return str(below) if below.name != str(below) else f"./{below}"
    return sys.argv[0]


class Interrupted(KeyboardInterrupt):
    """A signal asks the program to end; ``number`` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Console(rich.console.Console):
    """Raises for a closed standard output; rich itself would exit with 1, as if a sample had failed."""

    def on_broken_pipe(self) -> None:
        """Pass on the error that is being handled."""
        error = sys.exc_info()[1]  # rich calls this while it handles BrokenPipeError
        if error:
            raise error


class Parser(argparse.ArgumentParser):
    """Refuses in one line that begins with the program's name, without the usage in front."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"prog": program_name(), **options})

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with 2."""
        name = program_name()  # may hold blanks; a subcommand follows after one
        program = name if self.prog.startswith(name) else self.prog.partition(" ")[0]
        self.exit(REFUSED, f"{program}: {message.removeprefix('argument ')}\n")


def whole(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """Return the type of an argument that is a whole number within these bounds."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if value < minimum or (maximum is not None and value > maximum):
            bounds = f"from {minimum} to {maximum}" if maximum is not None else f"of at least {minimum}"
            raise argparse.ArgumentTypeError(f"found {text!r}, allowed a whole number {bounds}")
        return value

    return parse


def seconds(*, zero: bool = False) -> Callable[[str], float]:
    """Return the type of an argument that is a finite number above 0; with `zero` 0 is allowed, too."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
            raise argparse.ArgumentTypeError(f"found {text!r}, allowed a number {'of at least' if zero else 'above'} 0")
        return value

    return parse


def bucket(text: str) -> str:
    """Parse the name of a bucket: the name alone, not an address in it."""
    if not _BUCKET.fullmatch(text):
        name = text.removeprefix("s3://").partition("/")[0]
        hint = f" (here: {name})" if name != text and _BUCKET.fullmatch(name) else ""
        raise argparse.ArgumentTypeError(f"found {text!r}, allowed the name of a bucket alone{hint}")
    return text


def endpoint(text: str) -> str:
    """Parse the address of a service that stands in for AWS."""
    match = _ENDPOINT.fullmatch(text)
    port = re.search(r":([0-9]+)(/|$)", text.partition("//")[2].rpartition("]")[2] if match else "")
    if not match or (port and not 0 < int(port[1]) < 65536):
        raise argparse.ArgumentTypeError(f"found {text!r}, allowed an address such as http://127.0.0.1:4566")
    return text


def check_endpoint_variables(environment: Mapping[str, str], refuse: Callable[[str], Exception]) -> None:
    """Raise what `refuse` makes of one line when an AWS_ENDPOINT_URL variable holds no address."""
    for name, value in environment.items():
        if value and ENDPOINT_VARIABLE.fullmatch(name):
            try:
                endpoint(value)
            except argparse.ArgumentTypeError as error:
                raise refuse(f"{name}: {error}") from None


def clean_up_on_signals() -> None:
    """Turn SIGINT, SIGTERM and SIGHUP into :class:`Interrupted`, so that files of patients are removed before the program ends.

    The first signal counts; later ones do not interrupt the clean-up. A signal that was ignored (nohup) stays ignored.
    """
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    handled = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]

    def interrupt(number: int, frame: FrameType | None) -> None:
        del frame
        for other in handled:
            signal.signal(other, signal.SIG_IGN)
        raise Interrupted(number)

    for number in handled:
        signal.signal(number, interrupt)


def run(name: str, main: Callable[[], int], refusals: tuple[type[Exception], ...], *, closed: int = BROKEN_PIPE) -> int:
    """Run `main` and return its exit code.

    What is in `refusals` becomes one line and 2; a signal becomes 128 and its number; `closed` is the code for a standard output
    that the reader has closed.
    """
    clean_up_on_signals()
    try:
        code = main()
        sys.stdout.flush()
    except refusals as refusal:
        print(f"{name}: {refusal}", file=sys.stderr)
        return REFUSED
    except BrokenPipeError:
        # Python writes what is buffered when it ends, which would fail again, with a traceback
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return closed
    except KeyboardInterrupt as stop:
        number = getattr(stop, "number", signal.SIGINT)
        print(f"{name}: {'interrupted' if number == signal.SIGINT else 'terminated'}", file=sys.stderr)
        return 128 + int(number)
    return code


def shown(error: OSError, what: Any) -> str:
    """Return an operating system's error as `what: reason`, with the file that it names in place of `what`."""
    return f"{error.filename or what}: {error.strerror or error}"
