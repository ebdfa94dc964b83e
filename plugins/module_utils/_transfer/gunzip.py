# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decompress and hash a gzip stream so that both can go on after the process was killed.

zlib, OpenSSL's hashlib and every wrapper of them keep their state where it cannot be saved. ISA-L's inflate state and
libcrypto's SHA256_CTX are plain memory without pointers into it, so a copy of that memory is a checkpoint. ISA-L is also the
quicker decompressor by far. Both are called by ctypes: modules run in a target's own Python, where wheels are not to be had.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

# The libraries' sonames; libisal2 is a package of Debian and Ubuntu, libcrypto comes with Python.
ISAL = "libisal.so.2"
LIBCRYPTO = "libcrypto.so.3"

# From ISA-L's igzip_lib.h (2.30 and 2.31), whose soname promises that they stay.
_GZIP = 1
_BLOCK_FINISH = 5
_FAULTS = {
    -1: "invalid block",
    -2: "invalid symbol",
    -3: "invalid look-back distance",
    -4: "no gzip header",
    -5: "unknown compression method",
    -6: "wrong checksum",
}


class GzipError(Exception):
    """The stream is truncated or damaged, or a library is missing; the text is one line."""


class _Large(ctypes.Structure):
    _fields_ = [("short", ctypes.c_uint32 * 4096), ("long", ctypes.c_uint16 * 1264)]


class _Small(ctypes.Structure):
    _fields_ = [("short", ctypes.c_uint16 * 1024), ("long", ctypes.c_uint16 * 80)]


class _Inflate(ctypes.Structure):
    """struct inflate_state of igzip_lib.h."""

    _fields_ = [
        ("next_out", ctypes.c_void_p),
        ("avail_out", ctypes.c_uint32),
        ("total_out", ctypes.c_uint32),
        ("next_in", ctypes.c_void_p),
        ("read_in", ctypes.c_uint64),
        ("avail_in", ctypes.c_uint32),
        ("read_in_length", ctypes.c_int32),
        ("lit_huff_code", _Large),
        ("dist_huff_code", _Small),
        ("block_state", ctypes.c_int),
        ("dict_length", ctypes.c_uint32),
        ("bfinal", ctypes.c_uint32),
        ("crc_flag", ctypes.c_uint32),
        ("crc", ctypes.c_uint32),
        ("hist_bits", ctypes.c_uint32),
        ("block_left", ctypes.c_int32),
        ("write_overflow_lits", ctypes.c_int32),
        ("write_overflow_len", ctypes.c_int32),
        ("copy_overflow_length", ctypes.c_int32),
        ("copy_overflow_distance", ctypes.c_int32),
        ("wrapper_flag", ctypes.c_int16),
        ("tmp_in_size", ctypes.c_int16),
        ("tmp_out_valid", ctypes.c_int32),
        ("tmp_out_processed", ctypes.c_int32),
        ("tmp_in_buffer", ctypes.c_uint8 * 328),
        ("tmp_out_buffer", ctypes.c_uint8 * (2 * 32768 + 288)),
    ]


class _Sha256(ctypes.Structure):
    """SHA256_CTX of openssl/sha.h."""

    _fields_ = [
        ("h", ctypes.c_uint32 * 8),
        ("bits", ctypes.c_uint32 * 2),
        ("data", ctypes.c_uint32 * 16),
        ("num", ctypes.c_uint),
        ("length", ctypes.c_uint),
    ]


def _library(name: str, package: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(name)
    except OSError:
        raise GzipError(f"{name} is not on this host; install the package {package}") from None


class Sha256:
    """SHA-256 whose `state` can be saved, and given back to make one that goes on from there."""

    STATE_BYTES = ctypes.sizeof(_Sha256)

    def __init__(self, state: bytes | None = None) -> None:
        self._library = _library(LIBCRYPTO, "libssl3")
        if state is None:
            self._context = _Sha256()
            self._library.SHA256_Init(ctypes.byref(self._context))
        else:
            self._context = _Sha256.from_buffer_copy(state)

    @property
    def state(self) -> bytes:
        """A checkpoint of `STATE_BYTES` bytes."""
        return bytes(self._context)

    def update(self, data: memoryview) -> None:
        """Add the bytes of a writable buffer."""
        if data.nbytes:
            start = (ctypes.c_char * data.nbytes).from_buffer(data)
            self._library.SHA256_Update(ctypes.byref(self._context), start, ctypes.c_size_t(data.nbytes))

    def hexdigest(self) -> str:
        """Of the bytes so far; more can be added after."""
        digest = (ctypes.c_ubyte * 32)()
        copy = _Sha256.from_buffer_copy(self._context)
        self._library.SHA256_Final(digest, ctypes.byref(copy))
        return bytes(digest).hex()


class Gunzip:
    """What a gzip stream, of one member or several, holds; read once, from front to back.

    `blocks` yields the compressed bytes as writable buffers; `consumed` counts those that are used up. `state` describes this very
    moment: given back, with `consumed` and with `blocks` starting at that byte, reading goes on. Raises GzipError.
    """

    STATE_BYTES = ctypes.sizeof(_Inflate)

    def __init__(self, blocks: Iterator[memoryview], state: bytes | None = None, consumed: int = 0) -> None:
        self._library = _library(ISAL, "libisal2")
        self._blocks = blocks
        self._input: Any = b""  # keeps the buffer alive that next_in points into
        self.consumed = consumed
        self._ended = False
        if state is None:
            self._state = _Inflate()
            self._library.isal_inflate_init(ctypes.byref(self._state))
            self._state.crc_flag = _GZIP
        else:
            self._state = _Inflate.from_buffer_copy(state)
            self._state.avail_in = 0

    @property
    def state(self) -> bytes:
        """A checkpoint of `STATE_BYTES` bytes (about 90 kB)."""
        return bytes(self._state)

    def readinto(self, buffer: memoryview) -> int:
        """Fill a writable buffer, less of it only at the end; returns the number of bytes."""
        done = 0
        while done < len(buffer) and (got := self._inflate(buffer[done:])):
            done += got
        return done

    def _inflate(self, buffer: memoryview) -> int:
        state = self._state
        size = len(buffer)
        out = (ctypes.c_char * size).from_buffer(buffer)
        while not self._ended:
            if not state.avail_in and not self._feed():
                if state.block_state == _BLOCK_FINISH:
                    self._ended = True
                    break
                raise GzipError("cut off: it ends in the midst of the compressed data" if self.consumed else "empty")
            if state.block_state == _BLOCK_FINISH and not self._next_member():
                continue
            before = state.avail_in
            state.next_out, state.avail_out = ctypes.addressof(out), size
            code = self._library.isal_inflate(ctypes.byref(state))
            self.consumed += before - state.avail_in
            if code != 0:
                raise GzipError(f"damaged: {_FAULTS.get(code, f'fault {code}')} near byte {self.consumed}")
            got: int = size - state.avail_out
            if got:
                return got
        return 0

    def _feed(self) -> bool:
        """Give the next block to the decompressor; False when there is none."""
        for block in self._blocks:
            if block.nbytes:
                self._input = (ctypes.c_char * block.nbytes).from_buffer(block)
                self._state.next_in, self._state.avail_in = ctypes.addressof(self._input), block.nbytes
                return True
        return False

    def _next_member(self) -> bool:
        """After a member's end, with input at hand: start the next one; False when there was only padding.

        The decompressor reads no whole byte beyond a member's end; the next one begins where the input stands.
        """
        state = self._state
        rest = ctypes.string_at(state.next_in, state.avail_in)
        padding = len(rest) - len(rest.lstrip(b"\0"))
        state.next_in, state.avail_in = state.next_in + padding, state.avail_in - padding
        self.consumed += padding
        if state.avail_in:
            self._library.isal_inflate_reset(ctypes.byref(state))
            state.crc_flag = _GZIP
        return bool(state.avail_in)
