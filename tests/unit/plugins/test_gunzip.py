"""module_utils/gunzip: the bytes are gzip's own; a saved state goes on where it was, at any moment; damage is named."""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.module_runner import load

gunzip = load("module_utils._transfer.gunzip")


def blocks(data: bytes, size: int, start: int = 0) -> Iterator[memoryview]:
    for offset in range(start, len(data), size):
        yield memoryview(bytearray(data[offset : offset + size]))


def sample(seed: int, size: int) -> bytes:
    """Partly text that compresses, partly noise that does not."""
    chance = random.Random(seed)
    parts = []
    while sum(map(len, parts)) < size:
        parts.append(chance.randbytes(chance.randrange(1, 5000)))
        parts.append(b"chr17\t7675088\tC\tT\t" * chance.randrange(1, 400))
    return b"".join(parts)[:size]


def compressed(data: bytes, members: int, level: int = 6) -> bytes:
    step = -(-len(data) // members) or 1
    return b"".join(gzip.compress(data[i : i + step], level) for i in range(0, max(len(data), 1), step))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 9999),
    size=st.integers(0, 300_000),
    members=st.integers(1, 5),
    level=st.sampled_from([0, 1, 6, 9]),
    block=st.sampled_from([100, 4096, 70_000]),
    reads=st.lists(st.integers(500, 90_000), min_size=1, max_size=12),
    data=st.data(),
)
def test_goes_on_from_any_state(
    seed: int, size: int, members: int, level: int, block: int, reads: list[int], data: st.DataObject
) -> None:
    """The state is saved and taken up again between any two reads."""
    plain = sample(seed, size)
    packed = compressed(plain, members, level) + bytes(data.draw(st.integers(0, 600)))
    stream = gunzip.Gunzip(blocks(packed, block))
    found = io.BytesIO()
    for number in itertools.count():
        buffer = bytearray(reads[number % len(reads)])
        piece = bytes(buffer[: stream.readinto(memoryview(buffer))])
        if not piece:
            break
        found.write(piece)
        if number < 8 and data.draw(st.booleans()):
            stream = gunzip.Gunzip(blocks(packed, block, stream.consumed), stream.state, stream.consumed)
    assert found.getvalue() == plain
    assert stream.consumed == len(packed)


def test_hash_goes_on_too() -> None:
    data = sample(1, 100_000)
    for cut in (0, 1, 63, 64, 65, 99_999):
        first = gunzip.Sha256()
        first.update(memoryview(bytearray(data[:cut])))
        second = gunzip.Sha256(first.state)
        second.update(memoryview(bytearray(data[cut:])))
        assert first.hexdigest() == hashlib.sha256(data[:cut]).hexdigest()
        assert second.hexdigest() == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("cut", [0, 1, 9, 500, -9, -8, -1])
def test_cut_stream_is_told(cut: int) -> None:
    packed = compressed(sample(2, 50_000), 1)
    stream = gunzip.Gunzip(blocks(packed[: cut % len(packed)], 4096))
    with pytest.raises(gunzip.GzipError, match="empty" if not cut else "cut off"):
        while stream.readinto(memoryview(bytearray(10_000))):
            pass


@pytest.mark.parametrize("missing", range(1, 24, 3))
def test_cut_in_a_later_member_is_told(missing: int) -> None:
    packed = compressed(sample(3, 50_000), 2)
    tail = gzip.compress(b"")
    stream = gunzip.Gunzip(blocks((packed + tail)[:-missing] if missing < len(tail) else packed[:-missing], 4096))
    with pytest.raises(gunzip.GzipError, match="cut off"):
        while stream.readinto(memoryview(bytearray(10_000))):
            pass


def test_flipped_bit_and_garbage_are_told() -> None:
    packed = bytearray(compressed(sample(4, 50_000), 1))
    packed[len(packed) // 2] ^= 4
    for wrong in (bytes(packed), compressed(b"x" * 5000, 1) + b"garbage after the end", b"<html>no such file</html>"):
        stream = gunzip.Gunzip(blocks(wrong, 4096))
        with pytest.raises(gunzip.GzipError, match="damaged"):
            while stream.readinto(memoryview(bytearray(10_000))):
                pass
