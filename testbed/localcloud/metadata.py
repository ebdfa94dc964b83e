"""Instance metadata service (IMDSv2) of one local instance, served on a Unix socket.

QEMU's user network starts a ``socat`` for each guest connection to 169.254.169.254:80, which connects it to the socket
of that instance: each instance has a socket of its own. Paths, listings, tokens and answers follow "Instance metadata and
user data" of the Amazon EC2 user guide. The hop limit is not modelled, because no packet is routed.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

Node = str | bytes | Callable[[], str] | Mapping[str, "Node"]

API_PATH = "/latest/api/token"
SESSION_HEADER = "X-aws-ec2-metadata-token"
TTL_HEADER = "X-aws-ec2-metadata-token-ttl-seconds"
LONGEST_TTL = 21600  # seconds; the user guide allows 1 s to 6 h
LONGEST_SOCKET_PATH = 107  # bytes; unix(7): sun_path has 108 with the closing NUL
IDLE_SECONDS = 60.0  # an idle kept-alive connection is closed after this, which ends its thread
LARGEST_BODY = 65536  # bytes of a PUT body that are read and ignored; a token request has no body

# The versions that clients request by date (cloud-init, the SDKs); the tree is the same under each.
VERSIONS = ("1.0", "2007-01-19", "2008-02-01", "2009-04-04", "2012-01-12", "2014-02-25", "2016-09-02", "2018-09-24",
            "2020-10-27", "2021-03-23", "2021-07-15", "2022-09-24", "2024-04-11", "latest")  # fmt: skip

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InstanceView:
    """What the service reports about one instance at one moment.

    ``credentials`` returns ``{"AccessKeyId", "SecretAccessKey", "Token", "Expiration"}`` (ISO 8601 UTC) and is called for
    each request. ``block_devices`` maps the virtual name to the device (``{"ami": "/dev/xvda", ...}``).
    ``spot_action`` is ``{"action": "terminate", "time": "2026-11-23T03:00:00Z"}`` once an interruption is announced and
    ``rebalance`` the ISO 8601 time of a rebalance recommendation. A field that is None has no path (404).
    ``mac`` must be that of the guest's card: cloud-init finds the card by it.
    """

    instance_id: str
    image_id: str
    instance_type: str
    region: str
    availability_zone: str
    private_ip: str
    mac: str
    hostname: str
    account_id: str
    reservation_id: str
    public_ip: str | None = None
    key_name: str | None = None
    public_key: str | None = None
    security_groups: Sequence[str] = ()
    user_data: bytes | None = None
    role_name: str | None = None
    credentials: Callable[[], Mapping[str, str]] | None = None
    lifecycle: str = "on-demand"
    tags: Mapping[str, str] = field(default_factory=dict)
    block_devices: Mapping[str, str] = field(default_factory=dict)
    spot_action: Mapping[str, str] | None = None
    rebalance: str | None = None
    tokens_required: bool = True
    launched: datetime = field(default_factory=lambda: datetime.now(UTC))
    security_group_ids: Sequence[str] = ()
    interface_id: str | None = None
    subnet_id: str | None = None
    vpc_id: str | None = None
    availability_zone_id: str | None = None


class Server:
    """A running service; ``close()`` stops it and removes its socket."""

    def __init__(self, socket_path: Path, server: _SocketServer) -> None:
        self.socket_path = socket_path
        self._server = server
        self._thread = threading.Thread(target=server.serve_forever, name=f"imds {socket_path.name}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the service; open connections end with their daemon threads."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self.socket_path.unlink(missing_ok=True)


def serve(socket_path: Path, view: Callable[[], InstanceView]) -> Server:
    """Answer metadata requests on ``socket_path``, which is created for this user only, from ``view()``, called each time.

    Raises ValueError if the path is too long for a Unix socket, OSError if another service listens there.
    """
    if len(str(socket_path).encode()) > LONGEST_SOCKET_PATH:
        raise ValueError(f"{socket_path}: longer than the {LONGEST_SOCKET_PATH} bytes a Unix socket's path may have")
    _remove_dead_socket(socket_path)
    return Server(socket_path, _SocketServer(socket_path, view))


def _remove_dead_socket(path: Path) -> None:
    """Remove the socket that a killed service left behind, but never that of a running one."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()


class _Tokens:
    """Session tokens of one instance and their expiry times."""

    def __init__(self) -> None:
        self._ends: dict[str, float] = {}
        self._lock = threading.Lock()

    def issue(self, seconds: int) -> str:
        """Return a new token that is valid for ``seconds``."""
        now = time.monotonic()
        token = secrets.token_urlsafe(40)
        with self._lock:
            self._ends = {known: end for known, end in self._ends.items() if end > now}
            self._ends[token] = now + seconds
        return token

    def valid(self, token: str) -> bool:
        """Whether the token was issued and has not expired."""
        with self._lock:
            return self._ends.get(token, 0.0) > time.monotonic()


class _SocketServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, path: Path, view: Callable[[], InstanceView]) -> None:
        self.view = view
        self.tokens = _Tokens()
        super().__init__(str(path), _Handler)

    def server_activate(self) -> None:
        """Listen on a socket that only this user can open."""
        # Set the mode before listen(), so that nobody else can connect in between.
        Path(str(self.server_address)).chmod(0o600)
        super().server_activate()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log connections that end early; they are normal."""
        log.debug("metadata connection ended early", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _SocketServer
    protocol_version = "HTTP/1.1"
    server_version = "EC2ws"
    sys_version = ""
    timeout = IDLE_SECONDS
    # Send head and body in one packet: with two, the guest delays its acknowledgement of the first.
    wbufsize = -1

    def do_PUT(self) -> None:
        """Issue a session token."""
        self._drop_body()
        ttl = self.headers.get(TTL_HEADER, "")
        if self._path() != API_PATH:
            self._refuse(HTTPStatus.METHOD_NOT_ALLOWED)
        # A forwarded request came through an open proxy or firewall: the attack that tokens prevent.
        elif "X-Forwarded-For" in self.headers:
            self._refuse(HTTPStatus.FORBIDDEN)
        elif not re.fullmatch(r"[0-9]{1,5}", ttl) or not 1 <= int(ttl) <= LONGEST_TTL:
            self._refuse(HTTPStatus.BAD_REQUEST)
        else:
            self._send(HTTPStatus.OK, self.server.tokens.issue(int(ttl)).encode(), {TTL_HEADER: ttl})

    def do_GET(self) -> None:
        """Answer a request for metadata."""
        view = self.server.view()
        if not self._admitted(view):
            self._refuse(HTTPStatus.UNAUTHORIZED)
        elif (body := answer(view, self._path())) is None:
            self._refuse(HTTPStatus.NOT_FOUND)
        else:
            self._send(HTTPStatus.OK, body)

    do_HEAD = do_GET

    def _admitted(self, view: InstanceView) -> bool:
        """Whether the request's token is valid; without one, whether this instance still answers version 1."""
        token = self.headers.get(SESSION_HEADER)
        return not view.tokens_required if token is None else self.server.tokens.valid(token)

    def _path(self) -> str:
        return unquote(urlsplit(self.path).path)

    def _drop_body(self) -> None:
        length = self.headers.get("Content-Length", "0")
        if not length.isdecimal() or int(length) > LARGEST_BODY or "Transfer-Encoding" in self.headers:
            self.close_connection = True
            return
        self.rfile.read(int(length))

    def _refuse(self, status: HTTPStatus) -> None:
        title = f"{status.value} - {status.phrase}"
        page = (
            '<?xml version="1.0" encoding="iso-8859-1"?>\n'
            '<html xmlns="http://www.w3.org/1999/xhtml" xml:lang="en" lang="en">\n'
            f" <head>\n  <title>{title}</title>\n </head>\n <body>\n  <h1>{title}</h1>\n </body>\n</html>\n"
        )
        self._send(status, page.encode(), {"Content-Type": "text/html"})

    def _send(self, status: HTTPStatus, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "text/plain", "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log a request for debugging only."""
        log.debug("%s: " + format, Path(str(self.server.server_address)).name, *args)


def answer(view: InstanceView, path: str) -> bytes | None:
    """Return the body for GET ``path`` (``/latest/meta-data/...``), or None for 404.

    Folders give their listing, values themselves, each with or without a trailing slash: botocore requests
    ``placement/availability-zone/``.
    """
    parts = [part for part in path.split("/") if part]
    if not parts:
        return "\n".join(VERSIONS).encode()
    if parts[0] not in VERSIONS:
        return None
    node: Node = _root(view)
    for part in parts[1:]:
        if not isinstance(node, Mapping) or part not in node:
            return None
        node = node[part]
    if isinstance(node, Mapping):
        return "\n".join(_listing(parts[1:], node, view)).encode()
    value = node() if callable(node) else node
    return value if isinstance(value, bytes) else value.encode()


def _listing(parts: Sequence[str], folder: Mapping[str, Node], view: InstanceView) -> list[str]:
    if not parts:
        return sorted(folder)  # the service lists the top without slashes
    if parts == ["meta-data", "public-keys"]:
        return [f"0={view.key_name}"]
    return [f"{name}/" if isinstance(folder[name], Mapping) else name for name in sorted(folder)]


def _root(view: InstanceView) -> dict[str, Node]:
    identity = {"document": _json(_identity(view))}
    root: dict[str, Node] = {"meta-data": _meta_data(view), "dynamic": {"instance-identity": identity}}
    if view.user_data is not None:
        root["user-data"] = view.user_data
    return root


def _meta_data(view: InstanceView) -> dict[str, Node]:
    tree: dict[str, Node] = {
        "ami-id": view.image_id,
        "ami-launch-index": "0",
        "ami-manifest-path": "(unknown)",
        "block-device-mapping": dict(view.block_devices),
        "events": {"maintenance": {"history": "[]", "scheduled": "[]"}},
        "hostname": view.hostname,
        "instance-action": "none",
        "instance-id": view.instance_id,
        "instance-life-cycle": view.lifecycle,
        "instance-type": view.instance_type,
        "local-hostname": view.hostname,
        "local-ipv4": view.private_ip,
        "mac": view.mac.lower(),
        "network": {"interfaces": {"macs": {view.mac.lower(): _interface(view)}}},
        "placement": _present(
            {
                "availability-zone": view.availability_zone,
                "availability-zone-id": view.availability_zone_id,
                "region": view.region,
            }
        ),
        "profile": "default-hvm",
        "reservation-id": view.reservation_id,
        "security-groups": "\n".join(view.security_groups),
        "services": {"domain": "amazonaws.com", "partition": "aws"},
    }
    return tree | _optional(view)


def _optional(view: InstanceView) -> dict[str, Node]:
    """Return the paths that only some instances have."""
    tree: dict[str, Node] = {}
    if view.public_ip:
        tree |= {"public-ipv4": view.public_ip, "public-hostname": _public_hostname(view)}
    if view.key_name and view.public_key:
        tree["public-keys"] = {"0": {"openssh-key": view.public_key.strip() + "\n"}}
    if view.role_name and (issue := view.credentials):
        role: dict[str, Node] = {view.role_name: lambda: _json({**_success(), "Type": "AWS-HMAC", **issue()})}
        tree["iam"] = {"info": _json(_profile(view)), "security-credentials": role}
    # The service serves tags only with keys of these characters (user guide, "Work with instance tags in metadata").
    tags: dict[str, Node] = {k: v for k, v in view.tags.items() if re.fullmatch(r"[A-Za-z0-9+\-=.,_:@]+", k)}
    if tags:
        tree["tags"] = {"instance": tags}
    if view.rebalance:
        notice: Node = {"rebalance": _json({"noticeTime": view.rebalance})}
        tree["events"] = {"maintenance": {"history": "[]", "scheduled": "[]"}, "recommendations": notice}
    if view.spot_action:
        ends = view.spot_action["action"] == "terminate"
        times = {"termination-time": view.spot_action["time"]} if ends else {}
        tree["spot"] = {"instance-action": _json(view.spot_action), **times}
    return tree


def _interface(view: InstanceView) -> dict[str, Node]:
    folder: dict[str, Node] = {
        "device-number": "0",
        "local-hostname": view.hostname,
        "local-ipv4s": view.private_ip,
        "mac": view.mac.lower(),
        "owner-id": view.account_id,
        "security-group-ids": "\n".join(view.security_group_ids),
        "security-groups": "\n".join(view.security_groups),
    }
    folder |= _present({"interface-id": view.interface_id, "subnet-id": view.subnet_id, "vpc-id": view.vpc_id})
    if view.public_ip:
        folder |= {
            "public-hostname": _public_hostname(view),
            "public-ipv4s": view.public_ip,
            "ipv4-associations": {view.public_ip: view.private_ip},
        }
    return folder


def _present(values: Mapping[str, str | None]) -> dict[str, Node]:
    return {name: value for name, value in values.items() if value is not None}


def _public_hostname(view: InstanceView) -> str:
    return f"ec2-{(view.public_ip or '').replace('.', '-')}.{view.region}.compute.amazonaws.com"


def _identity(view: InstanceView) -> dict[str, Any]:
    return {
        "accountId": view.account_id,
        "architecture": "x86_64",
        "availabilityZone": view.availability_zone,
        "billingProducts": None,
        "devpayProductCodes": None,
        "imageId": view.image_id,
        "instanceId": view.instance_id,
        "instanceType": view.instance_type,
        "kernelId": None,
        "marketplaceProductCodes": None,
        "pendingTime": _utc(view.launched),
        "privateIp": view.private_ip,
        "ramdiskId": None,
        "region": view.region,
        "version": "2017-09-30",
    }


def _profile(view: InstanceView) -> dict[str, str]:
    return {**_success(), "InstanceProfileArn": f"arn:aws:iam::{view.account_id}:instance-profile/{view.role_name}"}


def _success() -> dict[str, str]:
    return {"Code": "Success", "LastUpdated": _utc(datetime.now(UTC))}


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2)


def _utc(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
