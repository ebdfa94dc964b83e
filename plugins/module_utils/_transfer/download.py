# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read large files from a mirror or an upstream server: by several connections at once, resumed after breaks."""

from __future__ import annotations

import concurrent.futures
import hashlib
import http
import os
import re
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

try:
    import requests
    import urllib3.exceptions
except ImportError:
    requests = None  # type: ignore[assignment]

BLOCK = 1 << 20
# What all connections together read ahead of the reader, as a part of the file: an interruption loses it.
AHEAD_OF_FILE = 1 / 250
# A range asked for at once: large enough that a request's delay and its millisecond of work do not count.
SMALLEST_RANGE, LARGEST_RANGE = 1 << 19, 8 << 20
# Another connection is opened when the reader has spent more than this part of so many seconds waiting.
WAITING, LOOK_SECONDS = 0.5, 0.25
LONGEST_PAUSE = 30  # seconds
# Answers that may pass by themselves; everything else in 4xx will not.
TRANSIENT = {408, 425, 429}


# Where Google Drive gives out files; `confirm` answers its question whether a file too large for its virus scan is wanted.
GDRIVE = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="


class DownloadError(Exception):
    """A file cannot be fetched or is not what it should be; the text is one line naming the address."""


class Interrupted(DownloadError):
    """The connection broke too often; what was received is good."""


class _Retry(Exception):
    """This attempt failed, the next may not."""


class Download:
    """A file at an address: http, https, file, s3 (then `signed` has the https address that was signed for it), or gdrive:ID.

    `size` is its length in bytes or None, `tag` what the server calls this version of it (strong ETag or time of change) or
    None, `type` its Content-Type, `received` the bytes that the network delivered. After a break only what is missing is
    asked for, after 1, 2, 4 ... 30 times `pause` seconds; `attempts` counts attempts without a byte of progress. `headers`
    gives what each request is to carry, at the time of the request: credentials may be short-lived. Raises DownloadError.
    """

    def __init__(
        self,
        url: str,
        *,
        connections: int = 6,
        timeout: float = 60,
        attempts: int = 6,
        pause: float = 1,
        headers: Callable[[], dict[str, str]] = dict,
        signed: dict[str, str] | None = None,
    ) -> None:
        if not re.match(r"(https?|file|s3)://|gdrive:", url):
            allowed = "http://, https://, file://, s3:// and gdrive:"
            raise DownloadError(f"{url}: not an address this can read; allowed are {allowed}")
        self.url = url
        # What is asked; it may hold a signature, so messages and files name `url` instead.
        self._asked = url.replace("gdrive:", GDRIVE, 1) if url.startswith("gdrive:") else (signed or {}).get(url, url)
        if self._asked.startswith("s3:"):
            raise DownloadError(
                f"{url}: no signed address was given for it; the lookup umccr.pcgr.s3_presigned_urls makes them"
            )
        self.connections = connections
        self.timeout = timeout
        self.attempts = attempts
        self.pause = pause
        self.headers = headers
        self.received = 0
        self.size: int | None = None
        self.tag: str | None = None
        self.type = ""
        self._ranges = False
        self._stopped = threading.Event()
        self._counting = threading.Lock()
        self._local = threading.local()
        self._first: Any = None
        self._path = unquote(urlsplit(url).path) if url.startswith("file:") else None
        if self._path is not None:
            try:
                about = os.stat(self._path)
            except OSError as error:
                raise DownloadError(f"{url}: {error.strerror}") from error
            self.size, self.tag, self._ranges = about.st_size, f"{about.st_mtime_ns}", True
        elif requests is None:
            raise DownloadError(f"{url}: Python's requests is not on this host; install the package python3-requests")
        else:
            self._retrying(self._learn, lambda: 0)

    def blocks(self, start: int = 0) -> Iterator[memoryview]:
        """Yield the content from byte `start` on, in order, as writable buffers of at most 1 MiB, each good until the next."""
        try:
            if self._path is not None:
                source = self._read_file(start)
            elif self._ranges:
                source = self._read_ranges(start)
            else:
                source = self._read_through(start)
            yield from source
        finally:
            self._stopped.set()

    # ---- a local file

    def _read_file(self, start: int) -> Iterator[memoryview]:
        try:
            with open(str(self._path), "rb", buffering=0) as file:
                file.seek(start)
                block = memoryview(bytearray(BLOCK))
                while count := file.readinto(block):
                    self._count(count)
                    yield block[:count]
        except OSError as error:
            raise DownloadError(f"{self.url}: {error.strerror}") from error

    # ---- ranges, by as many connections as it takes

    def _read_ranges(self, start: int) -> Iterator[memoryview]:
        """One connection, read in this thread, as long as it keeps the reader busy; otherwise others beside it."""
        size = self.size or 0
        pool = concurrent.futures.ThreadPoolExecutor(self.connections)
        pending: deque[concurrent.futures.Future[list[memoryview]]] = deque()
        ahead, begin = 0, start  # ranges on their way while one is being used, and where the next begins
        buffer = memoryview(bytearray(BLOCK))

        def span() -> tuple[int, int]:
            nonlocal begin
            length = min(max(int(size * AHEAD_OF_FILE) // (ahead + 1), SMALLEST_RANGE), LARGEST_RANGE)
            first, begin = begin, min(begin + length, size)
            return first, begin

        def whole(first: int, end: int) -> list[memoryview]:
            return list(self._range(first, end))

        def ask() -> None:
            while len(pending) < ahead and begin < size:
                pending.append(pool.submit(whole, *span()))

        def blocks_of(first: concurrent.futures.Future[list[memoryview]]) -> Iterator[memoryview]:
            yield from first.result()

        try:
            used, waited, since = 0, 0.0, time.monotonic()
            while begin < size or pending:
                ask()
                blocks = blocks_of(pending.popleft()) if pending else self._range(*span(), buffer)
                ask()
                while True:
                    # What the copying takes is no waiting.
                    asked = time.monotonic() - time.thread_time()
                    block = next(blocks, None)
                    waited += time.monotonic() - time.thread_time() - asked
                    if block is None:
                        break
                    yield block
                used += 1
                seconds = time.monotonic() - since
                if used > ahead and seconds > LOOK_SECONDS:  # and all of them were asked for with as many connections
                    if waited > WAITING * seconds:
                        ahead = min(ahead + 1, self.connections - 1)
                    used, waited, since = 0, 0.0, time.monotonic()
        finally:
            self._stopped.set()
            pool.shutdown(cancel_futures=True)

    def _range(self, begin: int, end: int, buffer: memoryview | None = None) -> Iterator[memoryview]:
        """Bytes `begin` to `end` (excluded) in blocks, all of them in `buffer` when there is one."""
        answer: Any = None
        block = memoryview(b"")

        def step() -> None:
            nonlocal answer, begin, block
            if self._stopped.is_set():
                raise DownloadError(f"{self.url}: stopped")
            using, answer = answer or self._get_range(begin, end), None  # whatever fails, its connection is done with
            length = min(BLOCK, end - begin)
            block = memoryview(bytearray(length)) if buffer is None else buffer[:length]
            # Straight into the block; urllib3's own reading makes two copies.
            count = using.raw._original_response.readinto(block)
            if not count:
                raise _Retry(f"the connection ended {end - begin} bytes early")
            answer, begin, block = using, begin + count, block[:count]
            self._count(count)

        while begin < end:
            self._retrying(step, lambda: begin)
            yield block
        answer.raw.release_conn()  # for the next range

    # ---- one connection, from a server that knows no ranges

    def _read_through(self, start: int) -> Iterator[memoryview]:
        position = 0
        ended = False
        block = bytearray()

        def step() -> None:
            nonlocal position, ended, block
            if self._first is None:
                self._first = self._get(0, None)
                self._check_same(self._first)
                self._skip(position)
            block = bytearray(BLOCK)
            count = self._first.raw.readinto(block)
            if not count and self.size is not None and position < self.size:
                raise _Retry(f"the connection ended {self.size - position} bytes early")
            ended = not count
            block = block[:count]
            position += count
            self._count(count)

        try:
            while not ended:
                self._retrying(step, lambda: position)
                new = position - max(start, position - len(block))
                if new > 0:
                    first = len(block) - new
                    yield memoryview(block)[first:]
        finally:
            self._close()

    def _skip(self, count: int) -> None:
        while count:
            got = len(self._first.raw.read(min(BLOCK, count)))
            if not got:
                raise _Retry("the connection ended early")
            self._count(got)
            count -= got

    # ---- what all share

    def _learn(self) -> None:
        """Ask for the first byte only: the answer says whether there are ranges, and how long the file is."""
        answer = self._get(0, 1)
        self.type = answer.headers.get("Content-Type", "")
        if self.url.startswith("gdrive:") and self.type.startswith("text/html"):
            # No file of ours is a page: this one is not public, or was asked for too often today.
            answer.close()
            page = self._get(0, None)
            title = re.search(r"<title>([^<]*)", page.raw.read(BLOCK, decode_content=True).decode("utf-8", "replace"))
            page.close()
            reason = f": {title[1].strip()}" if title else ""
            raise DownloadError(f"{self.url}: Google Drive sends a page instead of the file{reason}")
        self.tag = _tag(answer)
        if answer.status_code == http.HTTPStatus.PARTIAL_CONTENT and _span(answer)[1] is not None:
            self._ranges, self.size = True, _span(answer)[1]
            answer.close()
        elif answer.status_code == http.HTTPStatus.PARTIAL_CONTENT:
            answer.close()
            raise DownloadError(f"{self.url}: the server sends ranges but does not say how long the file is")
        else:
            length = answer.headers.get("Content-Length")
            self.size = int(length) if length else None
            self._first = answer

    def _get(self, begin: int, end: int | None) -> Any:
        """The server's answer to a request for bytes `begin` to `end` (excluded; None: no range is asked for)."""
        session = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = requests.Session()
        # The bytes of the file, not what a server makes of them on the way.
        headers = {"Accept-Encoding": "identity", **self.headers()}
        if end is not None:
            headers["Range"] = f"bytes={begin}-{end - 1}"
        answer = session.get(self._asked, headers=headers, stream=True, timeout=self.timeout)
        code = answer.status_code
        if code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and _span(answer)[1] == 0:
            raise DownloadError(f"{self.url}: the file is empty")
        if code >= http.HTTPStatus.BAD_REQUEST:
            said = answer.raw.read(BLOCK, decode_content=True).decode("utf-8", "replace")
            answer.close()
            reason = f"the server answers {code} {answer.reason}"
            if self.url.startswith("s3:") and (why := re.search(r"<Message>([^<]*)", said)):
                reason += f" ({why[1]})"  # such as that the signature has expired
            if code < http.HTTPStatus.INTERNAL_SERVER_ERROR and code not in TRANSIENT:
                raise DownloadError(f"{self.url}: {reason}")
            raise _Retry(reason)
        return answer

    def _get_range(self, begin: int, end: int) -> Any:
        """The server's answer with these bytes of the same file."""
        answer = self._get(begin, end)
        self._check_same(answer)
        if answer.status_code != http.HTTPStatus.PARTIAL_CONTENT or _span(answer)[0] != begin:
            raise DownloadError(f"{self.url}: asked for the bytes from {begin}, got others")
        return answer

    def _check_same(self, answer: Any) -> None:
        size = _span(answer)[1]
        if _tag(answer) != self.tag or (size is not None and size != self.size):
            raise DownloadError(f"{self.url}: the file was replaced while it was being read")

    def _retrying(self, step: Callable[[], None], progress: Callable[[], int]) -> None:
        """Call `step` until it succeeds; a failure counts as the first again when `progress` has grown since the last."""
        failed, reached = 0, progress()
        while True:
            try:
                step()
            except (_Retry, OSError, urllib3.exceptions.HTTPError) as error:  # requests' exceptions are OSErrors
                if self._stopped.is_set():
                    raise DownloadError(f"{self.url}: stopped") from error
                self._close()
                if progress() > reached:
                    failed, reached = 0, progress()
                failed += 1
                if failed >= self.attempts:
                    raise Interrupted(
                        f"{self.url}: given up after {self.attempts} attempts, {self.received} bytes received: {_why(error)}"
                    ) from error
                self._stopped.wait(min(self.pause * 2 ** (failed - 1), LONGEST_PAUSE))
            else:
                return

    def _close(self) -> None:
        if self._first is not None:
            self._first.close()
            self._first = None

    def _count(self, count: int) -> None:
        with self._counting:
            self.received += count


def _tag(answer: Any) -> str | None:
    # A weak tag does not promise the same bytes.
    tag = answer.headers.get("ETag")
    if tag and not tag.startswith("W/"):
        return str(tag)
    changed = answer.headers.get("Last-Modified")
    return str(changed) if changed else None


def _span(answer: Any) -> tuple[int | None, int | None]:
    """First byte and whole length according to the answer's Content-Range, each None if it does not say."""
    match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(?:(\d+)|\*)", answer.headers.get("Content-Range", ""))
    first, size = match.groups() if match else (None, None)
    return (int(first) if first else None), (int(size) if size else None)


def _why(error: BaseException) -> str:
    """The innermost reason in one line; requests wraps urllib3's exceptions, which wrap the system's."""
    while True:
        inner = getattr(error, "reason", None) or (error.args[-1] if error.args else None)
        if not isinstance(inner, BaseException):
            return " ".join(str(error).split()) or type(error).__name__
        error = inner


def address(base: str, name: str) -> str:
    """Address of file `name` in folder `base`."""
    return f"{base.rstrip('/')}/{name}"


def save(
    url: str,
    path: str,
    expected: str | None,
    *,
    algorithm: str = "sha256",
    resume: bool = False,
    count: Callable[[int], None] = lambda _received: None,
    **options: Any,
) -> str:
    """Save the file at `url` as `path`, checked against the checksum `expected` when given; return its checksum.

    Nothing is left on failure; with `resume`, the next call continues what a broken connection or an interruption leaves at
    `path`. `count` is called with the number of bytes written each time. Raises DownloadError, also when the disk has less room
    than the file needs.
    """
    found = hashlib.new(algorithm, usedforsecurity=False)
    start = 0
    try:
        with open(path, "ab" if resume else "wb") as out:
            if resume:
                start = _read_into(found, path)
                if start and found.hexdigest() == expected:
                    return found.hexdigest()
            download = Download(url, **options)
            ensure_space(os.path.dirname(path), (download.size or 0) - start, url)
            for block in download.blocks(start):
                out.write(block)
                found.update(block)
                count(len(block))
        check(url, found.hexdigest(), download.size, expected, algorithm=algorithm, content_type=download.type)
    except BaseException as error:
        if os.path.exists(path) and not (resume and isinstance(error, Interrupted | KeyboardInterrupt)):
            os.unlink(path)
        raise
    return found.hexdigest()


def ensure_space(folder: str, need: float, what: str) -> None:
    """Raise DownloadError when the disk of `folder` has less than the `need` bytes that `what` takes."""
    free = shutil.disk_usage(folder).free
    if free < need:
        raise DownloadError(f"{folder}: {readable(free)} free, about {readable(need)} needed for {what}")


def readable(size: float) -> str:
    """`size` bytes for people."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _read_into(found: Any, path: str) -> int:
    """Hash the file at `path`; its length in bytes."""
    length = 0
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            found.update(block)
            length += len(block)
    return length


def check(
    url: str, found: str, size: int | None, expected: str | None, *, algorithm: str = "sha256", content_type: str = ""
) -> None:
    """Raise DownloadError when the file's checksum is another than the expected one; `content_type` is what its server called it."""
    if expected and found != expected.lower():
        about = f"{size} bytes, {content_type}" if content_type else f"{size} bytes"
        raise DownloadError(f"{url}: {algorithm} is {found} ({about}), expected {expected.lower()}")
