"""The environment of a region's clients keeps the real aws command and SDKs in the region, whatever the user's shell sets.

A trap takes the place of the proxy in the user's own environment, and records which hosts clients try to reach.
"""

from __future__ import annotations

import json
import os
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from localcloud import clients, proxy
from support import ROOT

pytestmark = pytest.mark.plays

AWS = Path(sys.executable).parent / "aws"
# Services for which version 1 of the aws command ignores AWS_ENDPOINT_URL, and some for which it does not.
SERVICES = {
    "sqs": ("list-queues",),
    "emr": ("list-clusters",),
    "s3api": ("list-buckets",),
    "ec2": ("describe-instances",),
    "sts": ("get-caller-identity",),
}
TEST_SETTINGS = {"AWS_MAX_ATTEMPTS": "1", "AWS_PAGER": ""}
OWN_SHELL = {
    "AWS_PROFILE": "hospital",
    "AWS_SESSION_TOKEN": "real",
    "AWS_ENDPOINT_URL_SQS": "https://sqs.eu-west-1.amazonaws.com",
    "AWS_ENDPOINT_URL_STS": "https://sts.eu-west-1.amazonaws.com",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true",
    "AWS_USE_FIPS_ENDPOINT": "true",
    "NO_PROXY": "*",
    "no_proxy": ".amazonaws.com,.com,intranet.example",
}


class Trap(socketserver.ThreadingTCPServer):
    """An HTTP proxy that accepts CONNECT to port 1, answers it in place of the remote host, and refuses other ports."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Visit)
        self.wanted: list[str] = []
        self.heads: list[str] = []

    @property
    def url(self) -> str:
        """The proxy's URL, with user and password."""
        return f"http://user:p%40ss@127.0.0.1:{self.server_address[1]}"


class Visit(socketserver.StreamRequestHandler):
    """A connection to the trap."""

    server: Trap

    def handle(self) -> None:
        """Record the request, then answer it."""
        head = b""
        while not head.endswith(b"\r\n\r\n") and (line := self.rfile.readline()):
            head += line
        target = head.split(b" ")[1].decode()
        self.server.wanted.append(target)
        self.server.heads.append(head.decode())
        if target.endswith(":1"):
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\nfrom afar ")
            self.wfile.write(self.rfile.readline())
        else:
            self.wfile.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")


@pytest.fixture(scope="module")
def trap() -> Iterator[Trap]:
    """A running trap."""
    with Trap() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def outer(trap: Trap, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The user's environment: the trap is the proxy, and the region's folder has a name that the shell must quote."""
    folder = tmp_path_factory.mktemp("clients")
    (folder / "base.raw").write_bytes((b"\xf4\xeb\xfd".ljust(510, b"\0") + b"\x55\xaa").ljust(1 << 20, b"\0"))
    keep = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    keep |= {"LOCALCLOUD_DIR": str(folder / "a state"), "LOCALCLOUD_DISK": str(folder / "base.raw")}
    return keep | TEST_SETTINGS | {"HTTPS_PROXY": trap.url, "https_proxy": trap.url, "NO_PROXY": "", "no_proxy": ""}


def cli(environment: Mapping[str, str], *arguments: str) -> str:
    """Run a command of localcloud that must succeed; return its output."""
    command = [sys.executable, "-m", "localcloud", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def region(outer: dict[str, str]) -> Iterator[dict[str, str]]:
    """The environment of a running region with its endpoint only, without what keeps clients away from AWS."""
    try:
        cli(outer, "up", "--port", "0")
        (line,) = [line for line in cli(outer, "env").splitlines() if "AWS_ENDPOINT_URL=" in line]
        url = line.partition("=")[2]
        keys = {"AWS_ACCESS_KEY_ID": "localcloud", "AWS_SECRET_ACCESS_KEY": "localcloud", "NO_PROXY": "127.0.0.1"}
        yield outer | keys | {"AWS_ENDPOINT_URL": url, "AWS_DEFAULT_REGION": "ap-southeast-2"}
    finally:
        cli(outer, "down")


def in_shell(environment: Mapping[str, str], script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a script in a shell that has evaluated what `env` prints."""
    script = f'eval "$({sys.executable} -m localcloud env)"; {script}'
    command = ["sh", "-c", script, "sh", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_without_the_environment_the_aws_command_reaches_out(region: dict[str, str], trap: Trap) -> None:
    """Negative control: the endpoint alone does not keep it in the region."""
    trap.wanted.clear()
    for service in ("sqs", "emr"):
        command = [AWS, service, *SERVICES[service]]
        assert subprocess.run(command, env=region, capture_output=True, check=False).returncode != 0
    wanted = {"ap-southeast-2.queue.amazonaws.com:443", "ap-southeast-2.elasticmapreduce.amazonaws.com:443"}
    assert set(trap.wanted) == wanted


@pytest.mark.parametrize("shell", [{}, OWN_SHELL], ids=["plain", "settings-of-the-user"])
@pytest.mark.parametrize("service", SERVICES)
def test_aws_command_stays_in_the_region(
    region: dict[str, str], outer: dict[str, str], trap: Trap, service: str, shell: dict[str, str]
) -> None:
    trap.wanted.clear()
    done = in_shell(outer | shell, '"$@"', AWS, service, *SERVICES[service])
    assert trap.wanted == []
    # moto may lack EMR here; either way, the answer comes from the region
    assert done.returncode == 0 or (service == "emr" and "ListClusters operation" in done.stderr), done.stderr


def test_sdk_stays_in_the_region(region: dict[str, str], outer: dict[str, str], trap: Trap) -> None:
    trap.wanted.clear()
    script = "import boto3; print(boto3.client('sqs').create_queue(QueueName='q')['QueueUrl'])"
    done = in_shell(outer | OWN_SHELL, '"$@"', sys.executable, "-c", script)
    assert done.stdout == f"{region['AWS_ENDPOINT_URL']}/123456789012/q\n", done.stderr
    assert trap.wanted == []


def test_profile_with_real_keys_is_out_of_reach(region: dict[str, str], outer: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/credentials").write_text("[hospital]\naws_access_key_id = real\naws_secret_access_key = real\n")
    command = (AWS, "--profile", "hospital", "configure", "list")
    home = outer | {"HOME": str(tmp_path)}
    assert subprocess.run(command, env=home, capture_output=True, check=False).returncode == 0  # negative control
    done = in_shell(home, '"$@"', *command)
    assert "profile (hospital) could not be found" in done.stderr


def test_client_that_ignores_all_settings_is_stopped(region: dict[str, str], outer: dict[str, str], trap: Trap) -> None:
    trap.wanted.clear()
    for shell in ({}, OWN_SHELL):
        address = "https://sqs.ap-southeast-2.amazonaws.com"
        done = in_shell(outer | shell, '"$@"', AWS, "sqs", "list-queues", "--endpoint-url", address)
        assert done.returncode != 0
        assert "proxy" in done.stderr
    assert trap.wanted == []


def test_run_sets_what_env_prints(region: dict[str, str], outer: dict[str, str], tmp_path: Path, trap: Trap) -> None:
    trap.wanted.clear()
    own = outer | OWN_SHELL | {"LOCALCLOUD_DIR": str(tmp_path / "state")}
    cli(own, "run", "--port", "0", "--", str(AWS), "sqs", "list-queues")
    assert trap.wanted == []


def exchange(port: int, request: bytes) -> bytes:
    """Send a request to a port of the loopback; return the whole answer."""
    with socket.create_connection(("127.0.0.1", port), 20) as connection:
        connection.sendall(request)
        answer = b""
        while data := connection.recv(4096):
            answer += data
    return answer


def test_other_hosts_are_reached_through_the_users_own_proxy(region: dict[str, str], trap: Trap) -> None:
    trap.heads.clear()
    port = int(region["AWS_ENDPOINT_URL"].rpartition(":")[2])
    answer = exchange(port, b"CONNECT files.example:1 HTTP/1.1\r\n\r\nhello\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"\r\n\r\nfrom afar hello\n")
    assert "Proxy-Authorization: Basic dXNlcjpwQHNz\r\n" in trap.heads[0]
    assert exchange(port, b"CONNECT files.example:2 HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 502 ")
    refusal = exchange(port, b"CONNECT s3.amazonaws.com:443 HTTP/1.1\r\n\r\n")
    assert refusal.startswith(b"HTTP/1.1 403 localcloud keeps its clients from AWS, and refuses s3.amazonaws.com")
    assert exchange(port, b"CONNECT nowhere HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 400 ")


def test_other_hosts_are_reached_directly_without_such_a_proxy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, proxy.connect("127.0.0.1", server.getsockname()[1], None):
        server.settimeout(5)
        server.accept()[0].close()


@pytest.mark.parametrize("url", ["https://proxy.example:3128", "socks5://127.0.0.1:1080"])
def test_proxy_of_another_kind_is_named(url: str) -> None:
    with pytest.raises(proxy.ProxyError, match="allowed is http://HOST:PORT"):
        proxy.connect("files.example", 443, url)


def test_proxy_of_a_region_is_not_taken_for_the_users() -> None:
    assert clients.outer_proxy({"HTTPS_PROXY": "http://localcloud@127.0.0.1:4610"}) is None
    assert clients.outer_proxy({"HTTPS_PROXY": "http://proxy.example:3128"}) == "http://proxy.example:3128"


@pytest.mark.parametrize("host", ["sqs.eu-west-1.amazonaws.com", "QUEUE.amazonaws.com.", "s3.cn-north-1.amazonaws.com.cn",
                                  "amazonaws.com", "ec2.eu-west-1.api.aws"])  # fmt: skip
def test_hosts_of_aws(host: str) -> None:
    assert clients.is_aws(host)


@pytest.mark.parametrize("host", ["notamazonaws.com", "amazonaws.com.example.org", "pypi.example", "127.0.0.1", ""])
def test_other_hosts(host: str) -> None:
    assert not clients.is_aws(host)


VARIABLES = """\
- hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    - ansible.builtin.import_role: {name: umccr.pcgr.intake}
    - ansible.builtin.copy:
        dest: "{{ out }}"
        content: "{{ {'mirror': pcgr_mirror_url, 'wheels': consumer_wheels_url, 'port': aws_ssh_port} | to_json }}"
"""


def playbook(environment: Mapping[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the role intake with the variables that this project provides for a region."""
    (folder / "play.yml").write_text(VARIABLES)
    command = [
        AWS.with_name("ansible-playbook"),
        "-e",
        "@testbed/localcloud/vars.yml",
        "-e",
        f"out={folder / 'out.json'}",
    ]
    command += ["-e", "intake_name=vars", "-e", "intake_bucket=vars-bucket", folder / "play.yml"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_shipped_variables_let_a_bucket_take_samples(
    region: dict[str, str], outer: dict[str, str], tmp_path: Path, trap: Trap
) -> None:
    trap.wanted.clear()
    printed = in_shell(outer, "env -0").stdout.split("\0")
    environment = dict(line.split("=", 1) for line in printed if line)
    done = playbook(environment, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "out.json").read_text()) == {"mirror": None, "wheels": None, "port": 2222}
    # not over HTTPS, which the policy of the role would require elsewhere
    command = [AWS, "s3api", "put-object", "--bucket", "vars-bucket", "--key", "a-000001-somatic.tar.gz"]
    sent = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert sent.returncode == 0, sent.stderr
    policy = [AWS, "s3api", "get-bucket-policy", "--bucket", "vars-bucket"]
    got = subprocess.run(policy, env=environment, capture_output=True, text=True, check=False)
    assert "SecureTransport" not in got.stdout
    assert trap.wanted == []


def test_shipped_variables_without_a_region_are_refused(outer: dict[str, str], tmp_path: Path, trap: Trap) -> None:
    """Otherwise the roles would run against AWS."""
    trap.wanted.clear()
    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "ap-southeast-2"}
    done = playbook(outer | keys, tmp_path)
    assert done.returncode != 0
    assert "no region in the environment, run: eval" in done.stdout.replace("\n        ", " ")
    assert trap.wanted == []
