"""Start a local region, and launch instances in it."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3

from harness.images import MIRROR
from harness.process import ROOT, StepError

BOOT_SECONDS = 600  # an instance boots in about 20 to 90 seconds without KVM


@contextmanager
def local_region(directory: Path, log: Path) -> Iterator[dict[str, str]]:
    """Run a local region in folder `directory` for the block; yield the environment for its clients.

    The region ends with this process, however this process ends. Raises StepError if it does not start.
    """
    environment = {**os.environ, "LOCALCLOUD_DIR": str(directory)}
    localcloud = [sys.executable, "-m", "localcloud"]
    command = ["setpriv", "--pdeathsig", "TERM", *localcloud, "run", "--serve", str(MIRROR), "--", "sleep", "infinity"]
    with log.open("a", encoding="utf-8") as out:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        for _unused in range(120):
            answer = subprocess.run(
                [*localcloud, "env"], check=False, cwd=ROOT, env=environment, capture_output=True, text=True
            )
            if answer.returncode == 0:
                break
            if process.poll() is not None:
                raise StepError(f"the region did not start; see {log}")
            time.sleep(0.5)
        else:
            raise StepError(f"the region did not answer within a minute; see {log}")
        yield apply_exports(environment, answer.stdout)
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def apply_exports(environment: Mapping[str, str], lines: str) -> dict[str, str]:
    """Return the environment after a shell has evaluated lines of ``export NAME=value`` and ``unset NAME ...``."""
    result = dict(environment)
    for command, *words in map(shlex.split, lines.splitlines()):
        if command == "export":
            result |= dict(word.split("=", 1) for word in words)
        else:
            result = {name: value for name, value in result.items() if name not in words}
    return result


def client(environment: Mapping[str, str], service: str) -> Any:
    """Return a boto3 client of a service in the local region."""
    untyped_client: Any = boto3.client  # its type accepts only literal names of services
    return untyped_client(
        service,
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        region_name=environment["AWS_DEFAULT_REGION"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
    )


@contextmanager
def plain_instance(environment: Mapping[str, str], key: Path, inventory: Path) -> Iterator[None]:
    """Run an instance that has only booted, for the block; `inventory` names it as the only member of the group pcgr."""
    ec2 = client(environment, "ec2")
    name = f"plain-{inventory.stem}"
    ec2.import_key_pair(KeyName=name, PublicKeyMaterial=Path(f"{key}.pub").read_bytes())
    (launched,) = ec2.run_instances(
        ImageId=environment["LOCALCLOUD_AMI"], InstanceType="t3.medium", KeyName=name, MinCount=1, MaxCount=1
    )["Instances"]
    ids = [launched["InstanceId"]]
    try:
        ec2.get_waiter("instance_running").wait(InstanceIds=ids)
        address = ec2.describe_instances(InstanceIds=ids)["Reservations"][0]["Instances"][0]["PublicIpAddress"]
        write_inventory(inventory, address, int(environment["LOCALCLOUD_SSH_PORT"]), key)
        end = time.monotonic() + BOOT_SECONDS
        while not ssh_answers(address, int(environment["LOCALCLOUD_SSH_PORT"])):
            if time.monotonic() > end:
                raise StepError(f"{ids[0]} does not answer on SSH after {BOOT_SECONDS} seconds")
            time.sleep(1)
        yield
    finally:
        ec2.terminate_instances(InstanceIds=ids)
        ec2.get_waiter("instance_terminated").wait(InstanceIds=ids)
        ec2.delete_key_pair(KeyName=name)


def ssh_answers(address: str, port: int) -> bool:
    """Whether an SSH server responds. A connection alone proves nothing: QEMU accepts it before the guest is up."""
    try:
        with socket.create_connection((address, port), timeout=5) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def write_inventory(path: Path, address: str, port: int, key: Path) -> None:
    """Write an inventory whose group pcgr has one instance of the local region, named `machine`."""
    connection = {
        "ansible_host": address,
        "ansible_port": port,
        "ansible_user": "admin",
        "ansible_ssh_private_key_file": str(key),
        "ansible_ssh_common_args": "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null",
    }
    path.write_text(json.dumps({"pcgr": {"hosts": {"machine": connection}}}))


def make_key(path: Path) -> Path:
    """Create a throwaway SSH key pair at `path` and `path`.pub; return `path`."""
    path.unlink(missing_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "pcgr", "-f", path], check=True)
    return path
