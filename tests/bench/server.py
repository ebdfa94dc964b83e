"""Files over HTTP on loopback, with ranges: `server.py FOLDER [BYTES_PER_SECOND_PER_CONNECTION BYTES_PER_SECOND_IN_ALL]`.

Prints its port. `/-sent` answers with the bytes of files sent so far.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PIECE = 64 * 1024  # bytes sent at once where the rate is bounded
SLACK = 0.02  # seconds


class Rate:
    """Lets `pace` bytes a second pass, in the order of asking."""

    def __init__(self, pace: float) -> None:
        self.pace = pace
        self._free_at = time.monotonic()
        self._lock = threading.Lock()

    def book(self, count: int) -> float:
        """When the next `count` bytes may pass; what sleeps too long makes up for it, else it would be slower than its pace."""
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic() - SLACK) + count / self.pace
            return self._free_at


class Files(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # as all servers of files; else the last bytes of an answer wait for 40 ms
    folder = Path()
    each: float | None = None
    all: Rate | None = None
    sent = 0
    lock = threading.Lock()

    def setup(self) -> None:
        super().setup()
        self.rate = Rate(self.each) if self.each else None

    def do_GET(self) -> None:
        if self.path == "/-sent":
            body = str(Files.sent).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        path = self.folder / Path(self.path).name
        if not path.is_file():
            self.send_error(404)
            return
        size = path.stat().st_size
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = (int(span[1]), min(int(span[2] or size), size - 1)) if span else (0, size - 1)
        self.send_response(206 if span else 200)
        if span:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{hashlib.sha256(f"{path} {path.stat().st_mtime_ns}".encode()).hexdigest()[:16]}"')
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        self.wfile.flush()
        with path.open("rb") as file, suppress(OSError):
            while first <= last:
                count = min(last - first + 1, PIECE if self.rate else 1 << 20)
                if self.rate and self.all:
                    until = max(self.rate.book(count), self.all.book(count))
                    time.sleep(max(0.0, until - time.monotonic()))
                done = os.sendfile(self.connection.fileno(), file.fileno(), first, count)
                if not done:
                    return
                first += done
                with self.lock:
                    Files.sent += done

    def log_message(self, *_unused: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Clients may go as they please."""

    def handle_error(self, *_unused: Any) -> None:
        pass


def main() -> None:
    Files.folder = Path(sys.argv[1])
    if len(sys.argv) > 2:
        Files.each, Files.all = float(sys.argv[2]), Rate(float(sys.argv[3]))
    listening = Server(("127.0.0.1", 0), Files)
    print(listening.server_port, flush=True)
    listening.serve_forever()


if __name__ == "__main__":
    main()
