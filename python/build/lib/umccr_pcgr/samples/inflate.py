"""Reading gzip within limits: nothing is unpacked that was not counted first."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from types import TracebackType

# Below this much output the ratio says nothing: tar pads even an empty archive to 10 KiB of zeros, and gzip is read ahead in blocks.
RATIO_FROM = 1 << 20


class Unreadable(ValueError):
    """Damaged, truncated or too large; one line without the file's name."""


class Inflater:
    """A gzip file (of any number of members) as a stream of bytes, within limits; a plain file if it is not packed.

    `limit` is in bytes of output, `ratio` is output : input. Raises Unreadable, also when the file ends too early.
    """

    def __init__(self, path: Path, limit: int, ratio: int, *, packed: bool = True) -> None:
        self._raw = path.open("rb")
        self._file = gzip.GzipFile(fileobj=self._raw, mode="rb") if packed else None
        self._limit = limit
        self._ratio = ratio
        self._count = 0

    def __enter__(self) -> Inflater:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._raw.close()

    def _counted(self, data: bytes) -> bytes:
        self._count += len(data)
        if self._count > self._limit:
            raise Unreadable(f"unpacks to more than {self._limit} bytes")
        if self._file and self._count > RATIO_FROM + self._ratio * self._raw.tell():
            raise Unreadable(f"unpacks to more than {self._ratio} times its size (after {self._count} bytes)")
        return data

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; fewer only at the end."""
        try:
            return self._counted((self._file or self._raw).read(size))
        except EOFError:
            raise Unreadable("truncated gzip: the file ends before its end mark") from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise Unreadable(f"damaged gzip: {error}") from None
