# SPDX-License-Identifier: MIT
"""Read large files from a mirror or an upstream server: resumed, counted, hashed; standard library only (runs on targets)."""

from __future__ import annotations

import hashlib
import http.client
import io
import os
import re
import time
import urllib.error
import urllib.request
from typing import IO, Any

BLOCK = 1 << 20
# Answers that may pass by themselves; everything else in 4xx will not.
TRANSIENT = {408, 425, 429}


class DownloadError(Exception):
    """A file cannot be had or is not what it should be; the text is one line naming the address."""


class Stream(io.RawIOBase):
    """A file at an address (http, https, file) as a readable stream that survives broken connections.

    After a break it asks for the rest only (Range with If-Range), and waits 1, 2, 4 ... 30 seconds between attempts;
    `attempts` counts attempts without a byte of progress. `received` (bytes) and `sha256()` describe what was read so far,
    `size` is the announced length in bytes or None. Raises DownloadError.
    """

    def __init__(self, url: str, timeout: float = 60, attempts: int = 6, pause: float = 1) -> None:
        super().__init__()
        if not re.match(r"(https?|file)://", url):
            raise DownloadError(f"{url}: not an address this can read; allowed are http://, https:// and file://")
        self.url = url
        self.timeout = timeout
        self.attempts = attempts
        self.pause = pause
        self.received = 0
        self.size: int | None = None
        self.resumed = 0
        self._hash = hashlib.sha256()
        self.type = ""
        self._tag: str | None = None
        self._answer: IO[bytes] | None = None
        self._failed = 0
        self._retrying(self._open)

    def sha256(self) -> str:
        """SHA-256 of the bytes read so far, in hexadecimal."""
        return self._hash.hexdigest()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data: bytes = self._retrying(lambda: self._some(len(buffer)))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if self._answer is not None:
            self._answer.close()
            self._answer = None
        super().close()

    def _retrying(self, step: Any) -> Any:
        while True:
            try:
                return step()
            except urllib.error.HTTPError as error:
                error.close()
                if error.code < 500 and error.code not in TRANSIENT:
                    raise DownloadError(f"{self.url}: the server answers {error.code} {error.reason}") from error
                self._wait(f"the server answers {error.code} {error.reason}", error)
            except (OSError, http.client.HTTPException) as error:
                if self.url.startswith("file:"):
                    raise DownloadError(f"{self.url}: {getattr(error, 'reason', error)}") from error
                self._wait(str(getattr(error, "reason", None) or error or type(error).__name__), error)

    def _wait(self, what: str, error: Exception) -> None:
        if self._answer is not None:
            self._answer.close()
            self._answer = None
        self._failed += 1
        if self._failed >= self.attempts:
            raise DownloadError(
                f"{self.url}: given up after {self.attempts} attempts at byte {self.received}: {what}"
            ) from error
        time.sleep(min(self.pause * 2 ** (self._failed - 1), 30))

    def _some(self, limit: int) -> bytes:
        answer = self._answer
        if answer is None:
            answer = self._open()
            self.resumed += 1
        data = answer.read(limit)
        if not data and self.size is not None and self.received < self.size:
            raise ConnectionError(f"the connection ended {self.size - self.received} bytes early")
        if data:
            self._failed = 0
            self.received += len(data)
            self._hash.update(data)
        return data

    def _open(self) -> IO[bytes]:
        request = urllib.request.Request(self.url)  # noqa: S310  (the scheme was checked)
        if self.received:
            request.add_header("Range", f"bytes={self.received}-")
            if self._tag:
                request.add_header("If-Range", self._tag)
        answer: Any = urllib.request.urlopen(request, timeout=self.timeout)  # noqa: S310
        self._answer = answer
        length = answer.headers.get("Content-Length")
        if not self.received:
            self.size = int(length) if length else None
            self.type = answer.headers.get("Content-Type", "")
            tag = answer.headers.get("ETag")
            # A weak tag does not promise the same bytes, so it cannot guard a resumed read.
            self._tag = tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified")
            return self._answer
        if answer.status == 206:
            start = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
            if not start or int(start[1]) != self.received:
                raise DownloadError(f"{self.url}: asked for the rest from byte {self.received}, got another part")
            return self._answer
        # The whole file again: either ranges are not supported, or it was replaced while it was being read.
        if self.size is not None and length and int(length) != self.size:
            raise DownloadError(f"{self.url}: the file was replaced while it was being read")
        self._skip(answer, self.received)
        return self._answer

    @staticmethod
    def _skip(answer: IO[bytes], count: int) -> None:
        while count:
            data = answer.read(min(BLOCK, count))
            if not data:
                raise ConnectionError("the connection ended early")
            count -= len(data)


def address(base: str, name: str) -> str:
    """Address of file `name` in folder `base`."""
    return f"{base.rstrip('/')}/{name}"


def mirror_checksums(base: str, **options: Any) -> dict[str, str]:
    """SHA-256 by file name from `SHA256SUMS` of the mirror at `base`; raises DownloadError."""
    with Stream(address(base, "SHA256SUMS"), **options) as stream:
        text = stream.read(BLOCK).decode("utf-8", errors="replace")
    sums = {}
    for line in text.splitlines():
        match = re.fullmatch(r"([0-9a-fA-F]{64}) [ *](?:\./)?(\S.*)", line)
        if match:
            sums[match[2]] = match[1].lower()
    if not sums:
        raise DownloadError(f"{address(base, 'SHA256SUMS')}: holds no line as sha256sum writes them")
    return sums


def save(url: str, path: str, sha256: str | None, **options: Any) -> str:
    """Save the file at `url` as `path`, checked against `sha256` when given; return its SHA-256. Nothing is left on failure."""
    try:
        with Stream(url, **options) as stream, open(path, "wb") as out:
            while block := stream.read(BLOCK):
                out.write(block)
        check(stream, sha256)
    except BaseException:
        if os.path.exists(path):
            os.unlink(path)
        raise
    return stream.sha256()


def check(stream: Stream, sha256: str | None) -> None:
    """Raise DownloadError when the bytes read differ from the expected checksum."""
    if sha256 and stream.sha256() != sha256.lower():
        raise DownloadError(
            f"{stream.url}: sha256 is {stream.sha256()} ({stream.received} bytes), expected {sha256.lower()}"
        )
