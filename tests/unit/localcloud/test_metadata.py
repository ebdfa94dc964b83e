"""The metadata service over real HTTP on its Unix socket: tokens, tree, notices, and botocore as a client."""

from __future__ import annotations

import dataclasses
import http.client
import json
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from botocore.utils import InstanceMetadataFetcher, InstanceMetadataRegionFetcher

from localcloud.metadata import LONGEST_SOCKET_PATH, InstanceView, serve

TOKEN = "X-aws-ec2-metadata-token"
TTL = "X-aws-ec2-metadata-token-ttl-seconds"
MAC = "02:00:00:00:00:01"
VIEW = InstanceView(
    instance_id="i-0123456789abcdef0",
    image_id="ami-0123456789abcdef0",
    instance_type="t3.small",
    region="ap-southeast-2",
    availability_zone="ap-southeast-2a",
    private_ip="169.254.1.15",
    mac=MAC.upper(),
    hostname="ip-169-254-1-15.ap-southeast-2.compute.internal",
    account_id="123456789012",
    reservation_id="r-0123456789abcdef0",
)
FULL = dataclasses.replace(
    VIEW,
    public_ip="127.100.0.1",
    key_name="lab",
    public_key="ssh-ed25519 AAAA lab",
    security_groups=("default", "pcgr"),
    user_data=b"#!/bin/sh\n\xff\n",
    role_name="pcgr",
    credentials=lambda: {
        "AccessKeyId": "AKIA",
        "SecretAccessKey": "secret",
        "Token": "session",
        "Expiration": "2099-01-01T00:00:00Z",
    },
    lifecycle="spot",
    tags={"umccr.pcgr": "demo", "not/served": "x"},
    block_devices={"ami": "/dev/xvda", "root": "/dev/xvda"},
)


class Connection(http.client.HTTPConnection):
    """An HTTP connection to the service's Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("169.254.169.254", timeout=10)
        self.path = path

    def connect(self) -> None:
        """Connect to the socket instead of a host."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(10)
        self.sock.connect(str(self.path))


class Client:
    """The service of one instance and a client; ``view`` may be replaced while it runs."""

    def __init__(self, folder: Path) -> None:
        self.view = VIEW
        self.path = folder / "imds.sock"
        self.server = serve(self.path, lambda: self.view)

    def ask(self, method: str, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
        """Send a request; return status and body."""
        connection = Connection(self.path)
        connection.request(method, path, headers=dict(headers or {}))
        response = connection.getresponse()
        return response.status, response.read()

    def token(self, seconds: int = 60) -> str:
        """Return a new token."""
        status, body = self.ask("PUT", "/latest/api/token", {TTL: str(seconds)})
        assert status == 200
        return body.decode()

    def get(self, path: str) -> str | int:
        """Return the body at ``path``, requested with a new token, or the status if it is not 200."""
        status, body = self.ask("GET", path, {TOKEN: self.token()})
        return body.decode("latin-1") if status == 200 else status

    def meta(self, path: str) -> str | int:
        """Return what `get` returns below ``/latest/meta-data/``."""
        return self.get(f"/latest/meta-data/{path}")


@pytest.fixture
def imds() -> Iterator[Client]:
    """A running service and its client."""
    folder = Path(tempfile.mkdtemp())  # pytest's own folders are too long for a socket's path
    client = Client(folder)
    yield client
    client.server.close()
    shutil.rmtree(folder)


# Tokens


@pytest.mark.parametrize("seconds", ["1", "60", "21600"])
def test_token_is_issued_for_each_allowed_lifetime(imds: Client, seconds: str) -> None:
    assert imds.ask("PUT", "/latest/api/token", {TTL: seconds})[0] == 200


@pytest.mark.parametrize(
    "headers", [{}, *({TTL: bad} for bad in ("0", "21601", "-1", "", "abc", "60s", "1e3", "999999"))]
)
def test_token_is_refused_for_any_other_lifetime(imds: Client, headers: dict[str, str]) -> None:
    assert imds.ask("PUT", "/latest/api/token", headers)[0] == 400


def test_forwarded_token_request_is_forbidden(imds: Client) -> None:
    forwarded = {TTL: "60", "X-Forwarded-For": "203.0.113.9"}
    assert imds.ask("PUT", "/latest/api/token", forwarded)[0] == 403


def test_required_token_must_be_present_and_valid(imds: Client) -> None:
    path = "/latest/meta-data/instance-id"
    assert imds.ask("GET", path)[0] == 401
    assert imds.ask("GET", path, {TOKEN: "forged"})[0] == 401
    assert imds.ask("GET", path, {TOKEN: imds.token()}) == (200, VIEW.instance_id.encode())


def test_without_a_token_existing_paths_are_not_revealed(imds: Client) -> None:
    assert imds.ask("GET", "/latest/meta-data/nothing")[0] == 401


def test_optional_token_may_be_omitted_but_not_forged(imds: Client) -> None:
    imds.view = dataclasses.replace(VIEW, tokens_required=False)
    path = "/latest/meta-data/instance-id"
    assert imds.ask("GET", path)[0] == 200
    assert imds.ask("GET", path, {TOKEN: "forged"})[0] == 401


def test_token_expires(imds: Client) -> None:
    path, headers = "/latest/meta-data/instance-id", {TOKEN: imds.token(1)}
    assert imds.ask("GET", path, headers)[0] == 200
    time.sleep(1.1)
    assert imds.ask("GET", path, headers)[0] == 401


def test_token_of_another_instance_is_refused(imds: Client) -> None:
    folder = Path(tempfile.mkdtemp())
    other = Client(folder)
    try:
        assert imds.ask("GET", "/latest/meta-data/instance-id", {TOKEN: other.token()})[0] == 401
    finally:
        other.server.close()
        shutil.rmtree(folder)


def test_token_answer_repeats_its_lifetime(imds: Client) -> None:
    connection = Connection(imds.path)
    connection.request("PUT", "/latest/api/token", headers={TTL: "77"})
    assert connection.getresponse().getheader(TTL) == "77"


# Tree


def test_listings(imds: Client) -> None:
    imds.view = FULL
    assert str(imds.get("/")).split()[-1] == "latest"
    assert imds.get("/latest/") == "dynamic\nmeta-data\nuser-data"
    top = str(imds.meta("")).split("\n")
    assert {"instance-id", "iam/", "placement/", "public-keys/", "tags/", "security-groups"} <= set(top)
    assert imds.get("/latest/meta-data") == imds.meta("")
    assert imds.meta("public-keys/") == "0=lab"
    assert imds.meta("public-keys/0/") == "openssh-key"
    assert imds.meta("iam/security-credentials/") == "pcgr"
    assert imds.meta("network/interfaces/macs/") == f"{MAC}/"


def test_every_listed_path_answers(imds: Client) -> None:
    """cloud-init reads everything that a listing names."""
    imds.view = dataclasses.replace(FULL, spot_action={"action": "terminate", "time": "t"}, rebalance="t")
    leaves, folders = [], ["2021-03-23/meta-data/", "latest/dynamic/"]
    while folders:
        folder = folders.pop()
        for line in str(imds.get(f"/{folder}")).split("\n"):
            name = line.partition("=")[0] + "/" if "=" in line else line
            (folders if name.endswith("/") else leaves).append(folder + name)
    assert len(leaves) > 30
    assert [leaf for leaf in leaves if isinstance(imds.get(f"/{leaf}"), int)] == []


@pytest.mark.parametrize("version", ["2009-04-04", "2016-09-02", "2018-09-24", "2021-03-23", "latest"])
def test_known_versions(imds: Client, version: str) -> None:
    assert imds.get(f"/{version}/meta-data/instance-id") == VIEW.instance_id


def test_values(imds: Client) -> None:
    imds.view = FULL
    expected = {
        "instance-id": VIEW.instance_id,
        "local-hostname": VIEW.hostname,
        "placement/region": "ap-southeast-2",
        "placement/availability-zone/": "ap-southeast-2a",
        "public-ipv4": "127.100.0.1",
        "public-keys/0/openssh-key": "ssh-ed25519 AAAA lab\n",
        "security-groups": "default\npcgr",
        "instance-life-cycle": "spot",
        "tags/instance/": "umccr.pcgr",
        "tags/instance/umccr.pcgr": "demo",
        "block-device-mapping/root": "/dev/xvda",
        f"network/interfaces/macs/{MAC}/local-ipv4s": "169.254.1.15",
        "services/partition": "aws",
        "services/domain": "amazonaws.com",
    }
    assert {path: imds.meta(path) for path in expected} == expected
    assert imds.ask("GET", "/latest/user-data", {TOKEN: imds.token()}) == (200, FULL.user_data)


@pytest.mark.parametrize(
    "path",
    ["/1999-01-01/meta-data/instance-id", "/latest/nothing", "/latest/user-data", "/latest/meta-data/instance-id/more"]
    + [f"/latest/meta-data/{p}" for p in ("iam/info", "public-keys/", "tags/instance/", "public-ipv4", "spot/")],
)
def test_what_the_instance_lacks_is_not_found(imds: Client, path: str) -> None:
    status, body = imds.ask("GET", path, {TOKEN: imds.token()})
    assert status == 404
    assert b"404 - Not Found" in body


def test_role_credentials_are_requested_each_time(imds: Client) -> None:
    """The answer is complete, because clients other than botocore check its code, and the keys rotate."""
    numbers = iter(range(9))
    imds.view = dataclasses.replace(FULL, credentials=lambda: {"AccessKeyId": f"AKIA{next(numbers)}"})
    answers = [json.loads(str(imds.meta("iam/security-credentials/pcgr"))) for _unused in range(2)]
    assert [(a["Code"], a["Type"], a["AccessKeyId"]) for a in answers] == [
        ("Success", "AWS-HMAC", "AKIA0"),
        ("Success", "AWS-HMAC", "AKIA1"),
    ]
    assert json.loads(str(imds.meta("iam/info")))["InstanceProfileArn"].endswith(":instance-profile/pcgr")


def test_identity_document(imds: Client) -> None:
    document = json.loads(str(imds.get("/latest/dynamic/instance-identity/document")))
    assert {k: document[k] for k in ("accountId", "instanceId", "region", "imageId", "architecture")} == {
        "accountId": "123456789012",
        "instanceId": VIEW.instance_id,
        "region": "ap-southeast-2",
        "imageId": VIEW.image_id,
        "architecture": "x86_64",
    }


def test_other_methods_and_paths_for_put(imds: Client) -> None:
    assert imds.ask("PUT", "/latest/meta-data/instance-id", {TTL: "60"})[0] == 405
    assert imds.ask("DELETE", "/latest/api/token")[0] == 501


def test_head_has_no_body(imds: Client) -> None:
    token = imds.token()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as raw:
        raw.connect(str(imds.path))
        request = f"HEAD /latest/meta-data/ami-id HTTP/1.1\r\nHost: x\r\n{TOKEN}: {token}\r\nConnection: close\r\n\r\n"
        raw.sendall(request.encode())
        answer = raw.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"\r\n\r\n")


def test_several_requests_on_one_connection(imds: Client) -> None:
    connection = Connection(imds.path)
    connection.request("PUT", "/latest/api/token", body=b"ignored", headers={TTL: "60"})
    token = connection.getresponse().read().decode()
    for _unused in range(3):
        connection.request("GET", "/latest/meta-data/ami-id", headers={TOKEN: token})
        assert connection.getresponse().read().decode() == VIEW.image_id


# Notices


def test_interruption_and_rebalance_appear_when_set(imds: Client) -> None:
    paths = ("spot/instance-action", "spot/termination-time", "events/recommendations/rebalance")
    assert [imds.meta(path) for path in paths] == [404, 404, 404]
    when = "2026-11-23T03:02:00Z"
    imds.view = dataclasses.replace(VIEW, spot_action={"action": "terminate", "time": when}, rebalance=when)
    assert json.loads(str(imds.meta(paths[0]))) == {"action": "terminate", "time": when}
    assert imds.meta(paths[1]) == when
    assert json.loads(str(imds.meta(paths[2]))) == {"noticeTime": when}
    imds.view = dataclasses.replace(VIEW, spot_action={"action": "stop", "time": when})
    assert [imds.meta(path) for path in paths[1:]] == [404, 404]


# Clients


@pytest.fixture
def endpoint(imds: Client) -> Iterator[str]:
    """The service at a loopback address, through the same socat command that QEMU runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    forward = subprocess.Popen(
        ["socat", f"TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr", f"UNIX-CONNECT:{imds.path}"]
    )
    try:
        for _unused in range(50):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/"
    finally:
        forward.terminate()
        forward.wait()


def fetch(endpoint: str) -> dict[str, Any]:
    """Return the role credentials that botocore finds."""
    settings = {"ec2_metadata_service_endpoint": endpoint, "ec2_metadata_v1_disabled": True}
    # botocore's own second is short on a busy machine
    fetcher = InstanceMetadataFetcher(timeout=30, num_attempts=1, config=settings)
    credentials: dict[str, Any] = fetcher.retrieve_iam_role_credentials()
    return credentials


@pytest.mark.skipif(shutil.which("socat") is None, reason="socat not installed")
def test_botocore_takes_role_credentials_and_region(imds: Client, endpoint: str) -> None:
    imds.view = FULL
    got = fetch(endpoint)
    assert (got["role_name"], got["access_key"], got["secret_key"], got["token"]) == (
        "pcgr",
        "AKIA",
        "secret",
        "session",
    )
    region = InstanceMetadataRegionFetcher(
        timeout=30, num_attempts=1, config={"ec2_metadata_service_endpoint": endpoint}
    )
    assert region.retrieve_region() == "ap-southeast-2"


@pytest.mark.skipif(shutil.which("socat") is None, reason="socat not installed")
def test_botocore_finds_no_credentials_without_a_role(imds: Client, endpoint: str) -> None:
    assert imds.view.role_name is None
    assert fetch(endpoint) == {}


# The socket


def test_socket_is_private_and_removed_with_the_service(imds: Client) -> None:
    assert imds.path.stat().st_mode & 0o777 == 0o600
    imds.server.close()
    assert not imds.path.exists()


def test_dead_socket_is_replaced_and_an_active_one_is_not(imds: Client) -> None:
    with pytest.raises(OSError, match="in use"):
        serve(imds.path, lambda: VIEW)
    assert imds.meta("instance-id") == VIEW.instance_id
    dead = imds.path.with_name("dead.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left_behind:
        left_behind.bind(str(dead))
    serve(dead, lambda: VIEW).close()


def test_path_that_is_too_long_is_named() -> None:
    path = Path("/tmp") / ("x" * LONGEST_SOCKET_PATH)
    with pytest.raises(ValueError, match=r"xxx: longer than the 107 bytes"):
        serve(path, lambda: VIEW)
