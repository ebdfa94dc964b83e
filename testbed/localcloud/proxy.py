"""The HTTPS proxy on the API's port, which refuses connections to AWS and forwards all others.

HTTPS_PROXY names it in the region's environment, so even a client that ignores AWS_ENDPOINT_URL does not reach AWS.
"""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote, urlsplit

from localcloud.clients import is_aws, outer_proxy

CONNECT_SECONDS = 30.0
IDLE_SECONDS = 600.0  # a tunnel without traffic for this long is closed
CHUNK = 1 << 16


class ProxyError(Exception):
    """A connection could not be made; the text is one line."""


class ConnectMixin(BaseHTTPRequestHandler):
    """Answers the method CONNECT."""

    def do_CONNECT(self) -> None:
        """Open a tunnel to the host and port that the client names, or refuse."""
        self.close_connection = True
        host, _unused, port = self.path.rpartition(":")
        if not host or not port.isdecimal():
            self.send_error(400, "expected HOST:PORT")
        elif is_aws(host):
            self.send_error(403, f"localcloud keeps its clients from AWS, and refuses {host}; use AWS_ENDPOINT_URL")
        else:
            try:
                remote = connect(host, int(port), outer_proxy(os.environ))
            except (OSError, ProxyError) as error:
                self.send_error(502, f"{self.path}: {error}".replace("\n", " "))
                return
            with remote:
                self.send_response_only(200, "Connection established")
                self.end_headers()
                _tunnel(self.rfile.read1, self.connection, remote)  # rfile may have read beyond the head


def connect(host: str, port: int, proxy: str | None) -> socket.socket:
    """Return a connection to a host, through an HTTP proxy if its URL is given; raises OSError, ProxyError."""
    if not proxy:
        return _timed(socket.create_connection((host.strip("[]"), port), CONNECT_SECONDS))
    parts = urlsplit(proxy if "//" in proxy else f"http://{proxy}")
    if parts.scheme != "http" or not parts.hostname:
        raise ProxyError(f"HTTPS_PROXY: found {parts.scheme}://{parts.hostname}, allowed is http://HOST:PORT")
    remote = socket.create_connection((parts.hostname, parts.port or 80), CONNECT_SECONDS)
    request = f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n"
    if parts.username:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        request += f"Proxy-Authorization: Basic {base64.b64encode(login).decode()}\r\n"
    try:
        remote.sendall(f"{request}\r\n".encode())
        _check(_head(remote), parts.hostname)
    except BaseException:
        remote.close()
        raise
    return _timed(remote)


def _check(head: bytes, proxy: str) -> None:
    status = head.partition(b"\r\n")[0].decode("latin-1")
    if status.split(" ")[1:2] != ["200"]:
        raise ProxyError(f"the proxy {proxy} answers {status!r}")


def _timed(connection: socket.socket) -> socket.socket:
    connection.settimeout(IDLE_SECONDS)
    return connection


def _head(connection: socket.socket) -> bytes:
    """Read the head of an answer up to its empty line, and no further: the rest belongs to the client."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)
        if not byte or len(head) > CHUNK:
            raise ProxyError("the proxy closed the connection")
        head += byte
    return head


def _tunnel(read: Callable[[int], bytes], client: socket.socket, remote: socket.socket) -> None:
    """Copy in both directions until both sides have closed; ``read`` reads from the client."""
    back = threading.Thread(target=_copy, args=(remote.recv, client, remote), daemon=True)
    back.start()
    _copy(read, remote, client)
    back.join()


def _copy(read: Callable[[int], bytes], target: socket.socket, source: socket.socket) -> None:
    try:
        while data := read(CHUNK):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:  # if one side is gone, close the other too
        for side in (source, target):
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)
