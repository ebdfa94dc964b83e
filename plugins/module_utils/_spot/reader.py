# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads files in the form of ``aws ec2 describe-spot-price-history``."""

from __future__ import annotations

import functools
import json
import re
from typing import Any, BinaryIO

try:
    import msgspec
    import numpy as np
    from numpy.typing import NDArray
except ImportError as missing:
    IMPORT_ERROR: ImportError | None = missing
else:
    IMPORT_ERROR = None

from .history import History, Pool, group, parse_price, plain_product
from .log import SpotError, parse_time

CHUNK = 1 << 20  # bytes read at a time: the arrays made of it stay in the processor's cache
EARLIEST_YEAR, LATEST_YEAR = 1970, 2100
MULTIPLIER = 0x9E3779B97F4A7C15  # the golden ratio's fraction in 64 bits
MARGIN = 256  # bytes before and after, so that runs of bytes may be taken without looking at the edge
KEPT = 16 << 20  # bytes of work space that are not given back while a file is read
SLOTS = 16  # bits of a prefix's hash that index the table of known ones


def read_history(path: str) -> History:
    """Read a file in the form of ``aws ec2 describe-spot-price-history``; ``SpotError`` of one line when it is none.

    Files whose records all have the same form (keys in one order, ``SpotPrice`` and ``Timestamp`` last, one notation of times)
    are read by columns, at a multiple of a JSON parser's speed and without an object for each record. All others are read by
    the JSON parser, which also finds the words for what is wrong.
    """
    if IMPORT_ERROR is not None:
        raise SpotError(f"the Python library {IMPORT_ERROR.name} is missing (needed: numpy and msgspec)")
    try:
        with open(path, "rb", buffering=0) as file:
            try:
                return group(*_Columns(file).read())
            except _Irregular:
                file.seek(0)
                return _read_any(file.read(), path)
    except OSError as error:
        raise SpotError(f"{path}: {error.strerror}") from error


@functools.cache
def _shapes() -> tuple[Any, Any]:
    """Decoders of the two forms a file may have: the API's answer, and the bare list of records."""
    fields = [
        (name, str) for name in ("AvailabilityZone", "InstanceType", "ProductDescription", "SpotPrice", "Timestamp")
    ]
    record = msgspec.defstruct("Record", [*fields, ("AvailabilityZoneId", str, "")], gc=False)
    answer = msgspec.defstruct("Answer", [("SpotPriceHistory", list[record])])  # type: ignore[valid-type]
    return msgspec.json.Decoder(answer), msgspec.json.Decoder(list[record])  # type: ignore[valid-type]


def _read_any(content: bytes, path: str) -> History:
    answer, bare = _shapes()
    is_list = content.lstrip()[:1] == b"["
    try:
        records = bare.decode(content) if is_list else answer.decode(content).SpotPriceHistory
        extra = {} if is_list else msgspec.json.decode(content, type=dict[str, msgspec.Raw])
    except msgspec.DecodeError as error:
        raise SpotError(f"{path}: is no spot price history: {error}") from error
    except UnicodeDecodeError as error:
        raise SpotError(f"{path}: is no spot price history: not UTF-8 at byte {error.start}") from error
    codes: dict[Pool, int] = {}
    code, time, price = (np.empty(len(records), kind) for kind in (np.int64, float, float))
    for index, record in enumerate(records):
        product = plain_product(record.ProductDescription)
        pool = Pool(record.AvailabilityZone, record.InstanceType, product, record.AvailabilityZoneId)
        code[index] = codes.setdefault(pool, len(codes))
        try:
            time[index], price[index] = parse_time(record.Timestamp), parse_price(record.SpotPrice)
        except ValueError:
            raise SpotError(
                f"{path}: record {index + 1}: found SpotPrice {record.SpotPrice!r} and Timestamp {record.Timestamp!r}, "
                "allowed US dollars such as '0.0437' and an ISO 8601 time such as '2026-11-23T00:00:00Z'"
            ) from None
    extra.pop("SpotPriceHistory", None)
    return group(list(codes), code, time, price, {name: msgspec.json.decode(raw) for name, raw in extra.items()})


class _Irregular(Exception):
    """The file is not of one form all through: the JSON parser must read it."""


def _pairs(word: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Of eight characters as one little-endian word: byte i, but for the last, becomes the number that the digits i and i + 1 spell."""
    pairs = word & np.uint64(0x0F0F0F0F0F0F0F0F)
    pairs *= np.uint64(10 << 8 | 1)
    pairs >>= np.uint64(8)
    return pairs


def _byte(word: NDArray[np.uint64], index: int) -> NDArray[np.int64]:
    byte = word >> np.uint64(8 * index)
    byte &= np.uint64(0xFF)
    return byte.view(np.int64)


def _form(pattern: bytes) -> list[tuple[np.uint64, ...]]:
    """Words that tell whether others spell a pattern, in which ``\\x00`` stands for any digit and ``\\xff`` for anything."""
    width = -(-len(pattern) // 8) * 8
    characters = np.frombuffer(pattern.ljust(width, b"\xff"), np.uint8)
    digit, anything = characters == 0, characters == 0xFF
    sixes = np.where(digit, 0x06, 0).astype(np.uint8)
    mask = np.where(digit, 0xF0, np.where(anything, 0, 0xFF)).astype(np.uint8)
    literal = np.where(digit, 0x30, np.where(anything, 0, characters)).astype(np.uint8)
    return list(zip(*(part.view("<u8") for part in (sixes, mask, literal)), strict=True))


def _misfit(columns: NDArray[np.uint64], form: list[tuple[np.uint64, ...]]) -> NDArray[np.uint64]:
    """Zero where words, one column for each of the form, spell it. A digit is 0x30 to 0x39: its upper half is 3, and still is when 6 is added."""
    wrong = np.zeros(columns.shape[1], np.uint64)
    for word, (sixes, mask, literal) in zip(columns, form, strict=True):
        found = word + sixes
        found &= word
        found &= mask
        found ^= literal
        wrong |= found
    return wrong


class _Columns:
    """Reads a regular file by columns. What it takes for granted it checks, record by record; else ``_Irregular``.

    A record is `PREFIX` price `MIDDLE` time `END`, where the prefix (from the record before to the price) names the pool, and
    middle and end are the same throughout. Each different prefix is parsed once, as JSON.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        # The C library keeps freed memory up to twice the largest block that was freed. Without this, the arrays below would be
        # given back to the system each time, and cleared anew page by page.
        np.empty(KEPT, np.uint8)
        self._buffer = bytearray(MARGIN + CHUNK + MARGIN)
        self._bytes = np.frombuffer(self._buffer, np.uint8)
        self._is_brace = np.empty(len(self._buffer), bool)
        self._codes: dict[Pool, int] = {}
        self._prefixes: dict[int, int] = {}  # hash to number
        self._table = np.zeros(1 << SLOTS, np.int32)  # first bits of a hash to number
        self._known = np.zeros(1, np.uint64)  # hashes by number
        self._code_of = np.zeros(1, np.int32)
        self._widths = (0, 0)
        self._price_form = _form(b'\xff\xff\xff\xff\xff\xff\xff"\0.\0\0\0\0\0\0')
        # By year and month as 202611 less the earliest: the day before the month's first, since 1970, and how many days it has.
        months = np.arange((LATEST_YEAR - EARLIEST_YEAR) * 12 + 1)
        days = months.astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)
        place = months[:-1] // 12 * 100 + months[:-1] % 12 + 1
        self._day_before, self._month_length = np.zeros((2, (LATEST_YEAR - EARLIEST_YEAR) * 100), np.int64)
        self._day_before[place], self._month_length[place] = days[:-1] - 1, np.diff(days)

    def _from_anywhere(self, width: int) -> NDArray[Any]:
        """All runs of ``width`` bytes of the buffer, by where they begin. Taking many of them is one copy each."""
        shape = (len(self._buffer) - width,)
        runs: NDArray[Any] = np.ndarray(shape, f"V{width}", self._buffer, strides=(1,))
        return runs

    def _rows(self, at: NDArray[np.int64], count: int) -> NDArray[np.uint64]:
        """``count`` words from each position on, as rows."""
        rows: NDArray[np.uint64] = self._from_anywhere(8 * count)[at].view("<u8").reshape(len(at), count)
        return rows

    def _columns(self, at: NDArray[np.int64], count: int) -> NDArray[np.uint64]:
        """The same as columns, each of which is whole in memory: numpy is fast along it."""
        return np.ascontiguousarray(self._rows(at, count).T)

    def read(self) -> tuple[list[Pool], NDArray[np.int32], NDArray[np.float64], NDArray[np.float64], dict[str, Any]]:
        """Pools, and per record the pool's number, time and price, and what the file holds beside the records."""
        view = memoryview(self._buffer)[MARGIN:]
        parts: list[tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.float64]]] = []
        size = _fill(self._file, view[:CHUNK])
        head = self._learn(bytes(view[: min(size, 1 << 16)]))
        begin = len(head)  # where the next record starts, its separator included
        while True:
            ends = self._braces(MARGIN + size)
            first = np.searchsorted(ends, MARGIN + begin)
            ends = ends[first:]
            words = self._after_price(ends)
            misfits = np.flatnonzero(_misfit(words, self._rest_form) != 0)
            if len(misfits):  # what follows the list, or else no document is left around the records
                ends, words = ends[: misfits[0]], words[:, : misfits[0]]
            if len(ends):
                parts.append(self._parse(MARGIN + begin, ends, words))
                begin = int(ends[-1]) + 1 - MARGIN
            rest = size - begin
            if rest > CHUNK // 2:
                raise _Irregular
            view[:rest] = bytes(view[begin:size])
            got = _fill(self._file, view[rest:CHUNK])
            begin, size = 0, rest + got
            if len(misfits) or not got:
                break
        extra = _envelope(head, bytes(view[:size]))
        if not parts:
            raise _Irregular
        code, time, price = (np.concatenate([part[index] for part in parts]) for index in range(3))
        return list(self._codes), code, time, price, extra

    def _learn(self, start: bytes) -> bytes:
        """Learn the form from the first record; returns what comes before it."""
        form = rb'\s*(?:\{\s*"SpotPriceHistory"\s*:\s*)?\[\s*(?=\{[^{}]*?"SpotPrice"\s*:\s*"[0-9.]+("\s*,\s*"Timestamp"\s*:\s*")'
        found = re.match(
            form + rb'\d{4}-\d\d-\d\d([T ])\d\d:\d\d:\d\d((?:\.0+)?(?:[zZ]|\+00:00|\+0000)?"\s*\}))', start
        )
        if not found:
            raise _Irregular
        middle, between, end = found.groups()
        self._length = len(middle) + 19 + len(end)  # of all that follows the price
        self._time_word = -(-len(middle) // 8)
        self._lead = self._time_word * 8 - len(middle)  # bytes of the price: with them the time begins with a word
        stamps = b"\0\0\0\0-\0\0-\0\0" + between + b"\0\0:\0\0:\0\0"
        self._rest_form = _form(b"\xff" * self._lead + middle + stamps + end)
        return found[0]

    def _braces(self, size: int) -> NDArray[np.int64]:
        """Where the closing braces are, up to ``size``; eight bytes at a time, since few have one."""
        np.equal(self._bytes, ord("}"), out=self._is_brace)
        eights = self._is_brace.view("<u8")
        found = np.flatnonzero(eights != 0)  # numpy looks through truth values seven times as fast as through numbers
        words = eights[found]
        if (words & (words - np.uint64(1))).max(
            initial=0
        ):  # two in eight bytes: where records end and the file does too
            at: NDArray[np.int64] = np.flatnonzero(self._is_brace[:size])
        else:
            # A one in byte k moves up, by k bytes, the byte of this number that is k, to the top.
            at = found * 8 + (words * np.uint64(0x0001020304050607) >> np.uint64(56)).view(np.int64)
        return at[: np.searchsorted(at, size)]

    def _after_price(self, ends: NDArray[np.int64]) -> NDArray[np.uint64]:
        """What follows the prices of the records that end there, as columns of words."""
        return self._columns(ends + 1 - self._length - self._lead, len(self._rest_form))

    def _parse(
        self, begin: int, ends: NDArray[np.int64], words: NDArray[np.uint64]
    ) -> tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.float64]]:
        """Pools, times and prices of the records that end there; ``words`` is what follows their prices."""
        first, end = self._time_word, self._time_word + 3
        time = self._times(*words[first:end])
        price, at = self._prices(ends + 1 - self._length)
        starts = np.concatenate(([begin], ends[:-1] + 1))
        return self._pools(starts, at), time, price

    def _times(
        self, date: NDArray[np.uint64], clock: NDArray[np.uint64], seconds: NDArray[np.uint64]
    ) -> NDArray[np.float64]:
        """Seconds since 1970 of times as words such as ``2026-11-``, ``23T01:02`` and ``:03.000Z``."""
        date, clock, seconds = _pairs(date), _pairs(clock), _pairs(seconds)
        month = (_byte(date, 0) * 100 + _byte(date, 2)) * 100 + _byte(date, 5) - EARLIEST_YEAR * 100
        day, hour, minute, second = _byte(clock, 0), _byte(clock, 3), _byte(clock, 6), _byte(seconds, 1)
        if month.min() < 0 or month.max() >= len(self._month_length):
            raise _Irregular
        if day.min() < 1 or np.any(day > self._month_length[month]):
            raise _Irregular
        if hour.max() > 23 or minute.max() > 59 or second.max() > 59:
            raise _Irregular
        time: NDArray[np.float64] = (
            (((self._day_before[month] + day) * 24 + hour) * 60 + minute) * 60 + second
        ).astype(float)
        return time

    def _prices(self, after: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Prices whose last digit is before ``after``, and where each begins."""
        columns = self._columns(after - 16, 2)
        word, pairs = columns[1], _pairs(columns[1])
        micro = (word & np.uint64(15)).view(np.int64) * 1_000_000
        micro += _byte(pairs, 2) * 10_000 + _byte(pairs, 4) * 100 + _byte(pairs, 6)
        price, at = micro / 1e6, after - 8  # correctly rounded: both are whole numbers below 2**53
        other = np.flatnonzero(_misfit(columns, self._price_form) != 0)
        if len(other):
            price[other], at[other] = self._odd_prices(after[other])
        return price, at

    def _odd_prices(self, after: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """The same for prices of other lengths, up to fifteen digits: characters from right to left."""
        number, scale = np.zeros(len(after)), np.ones(len(after))
        places, length = np.ones(len(after)), np.zeros(len(after), np.int64)
        open_, pointed = np.ones(len(after), bool), np.zeros(len(after), bool)
        for index in range(1, 18):
            character = self._bytes[after - index]
            open_ &= character != ord('"')
            point, digit = open_ & (character == ord(".")), open_ & (character >= ord("0")) & (character <= ord("9"))
            if np.any(open_ & ~digit & ~point) or np.any(point & pointed):
                raise _Irregular
            pointed |= point
            places[point] = scale[point]
            number[digit] += (character[digit] - 48.0) * scale[digit]
            scale[digit] *= 10
            length[open_] = index
        if np.any(open_) or np.any((scale == 1) | (scale > 1e15) | (number / places >= 1e6)):
            raise _Irregular
        return number / places, after - length

    def _pools(self, starts: NDArray[np.int64], at: NDArray[np.int64]) -> NDArray[np.int32]:
        """The pool of each prefix ``[starts:at]``, by a hash of all its bytes: some from its start on, the others up to its end."""
        length = at - starts
        shortest, longest = int(length.min()), int(length.max())
        if shortest < self._widths[0] or longest > sum(self._widths):
            first = min(shortest // 8 * 8, self._widths[0] or shortest // 8 * 8)
            second = max(-(-(longest - first) // 8) * 8, sum(self._widths) - first)
            if second > shortest or second > MARGIN:
                raise _Irregular
            self._widths = (first, second)
            self._prefixes.clear()
            self._known, self._code_of = self._known[:1], self._code_of[:1]
            self._table[:] = 0
            powers = [
                pow(MULTIPLIER, index, 1 << 64) for index in range(1, (first + second) // 8 + 1)
            ]  # odd, far apart
            odd = np.array(powers, np.uint64)
            half = first // 8
            self._weights = odd[:half], odd[half:]
        mixed = length.astype(np.uint64)
        for begin, width, weights in zip((starts, at - self._widths[1]), self._widths, self._weights, strict=True):
            rows = self._rows(begin, width // 8)
            rows ^= rows >> np.uint64(32)
            mixed += rows @ weights
        mixed *= np.uint64(MULTIPLIER)
        number = self._table[mixed >> np.uint64(64 - SLOTS)]
        missed = np.flatnonzero(self._known[number] != mixed)
        if len(missed):
            unknown = zip(mixed[missed].tolist(), starts[missed].tolist(), at[missed].tolist(), strict=True)
            number[missed] = [self._prefixes.get(value) or self._number(value, *where) for value, *where in unknown]
        code: NDArray[np.int32] = self._code_of[number]
        return code

    def _number(self, value: int, start: int, end: int) -> int:
        """Learn a prefix; returns its number."""
        prefix = bytes(self._buffer[start:end]).lstrip(b", \t\r\n")
        try:
            record = json.loads(prefix + b'0"}')
            product = plain_product(record["ProductDescription"])
            pool = Pool(
                record["AvailabilityZone"], record["InstanceType"], product, record.get("AvailabilityZoneId") or ""
            )
        except (ValueError, KeyError, AttributeError, TypeError):
            raise _Irregular from None
        if not all(isinstance(part, str) for part in pool) or record.get("SpotPrice") != "0":
            raise _Irregular
        found = self._prefixes[value] = len(self._known)
        self._known = np.append(self._known, np.uint64(value))
        self._code_of = np.append(self._code_of, np.int32(self._codes.setdefault(pool, len(self._codes))))
        slot = value >> (64 - SLOTS)
        if not self._table[slot]:
            self._table[slot] = found
        return found


def _fill(file: BinaryIO, view: memoryview) -> int:
    """Read until the view is full or the file ends; returns the number of bytes."""
    size = 0
    while size < len(view):
        got = file.readinto(view[size:])  # type: ignore[attr-defined]
        if not got:
            break
        size += got
    return size


def _envelope(head: bytes, tail: bytes) -> dict[str, Any]:
    """What is around the records, which must be a whole JSON document without them."""
    try:
        document = json.loads(head + tail)
    except ValueError:
        raise _Irregular from None
    if isinstance(document, dict) and document.pop("SpotPriceHistory", None) == []:
        return document
    if document == []:
        return {}
    raise _Irregular
