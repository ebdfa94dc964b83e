"""What the demo and the machine tests share: images made ready, a local region started, a playbook run in it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3

from localcloud import buildlock
from localcloud.image import build_base_image

ROOT = Path(__file__).resolve().parents[2]

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "umccr.pcgr"
MIRROR = CACHE / "mirror"
REGION_VARIABLES = ROOT / "testbed/localcloud/vars.yml"
TARGET_PYTHON = (
    "3.10"  # the oldest of the targets (Ubuntu 22.04); the wheels are pure Python, so they serve newer ones too
)

BOOT_SECONDS = 600  # a machine needs about 20 to 90 without KVM

Progress = Callable[[str], None]


class StepFailed(RuntimeError):
    """A step of the road failed; the text is one line for a person."""


def run(command: list[str | Path], log: Path, *, what: str, env: Mapping[str, str] | None = None) -> None:
    """Run `command` with its output in `log`; raise StepFailed, naming the log, when it fails."""
    for _unused in follow(command, log, what=what, env=env):
        pass


def follow(command: list[str | Path], log: Path, *, what: str, env: Mapping[str, str] | None = None) -> Iterator[str]:
    """Yield the output lines of `command` while it runs; all of them go to `log` too."""
    with (
        log.open("a", encoding="utf-8") as out,
        subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=dict(env or os.environ),
            text=True,
            errors="replace",
        ) as process,
    ):
        assert process.stdout  # noqa: S101  (PIPE above)
        reason = ""
        try:
            for line in process.stdout:
                out.write(line)
                out.flush()
                reason = last_error(reason, line)
                yield line.rstrip("\n")
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise StepFailed(
            f"{what} failed (exit code {process.returncode}){f': {reason}' if reason else ''}; the whole output is in {log}"
        )


# How programs and Ansible begin the line that says why they failed. The last line of a play is a table of counts.
_ERROR = re.compile(r"\s*(msg: |fatal: |\[?ERROR|[a-z_]+: |✘)\s*(?P<reason>\S.*)")
_TRACE = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt)\b.*")


def last_error(before: str, line: str) -> str:
    """Return the error that `line` reports, as one short line; `before`, the last one so far, if it reports none."""
    text = line.strip()
    if match := _ERROR.match(line):
        return match["reason"].strip("\"'") if match[1] == "msg: " else text
    return text if _TRACE.fullmatch(text) else before


def prepare_images(log: Path, progress: Progress) -> None:
    """Make what the region needs, each only when its recipe has changed: the mirror's files, the base image."""
    prepare_mirror(log, progress)
    build_base_image(CACHE, progress)


def prepare_mirror(log: Path, progress: Progress) -> None:
    """Make what machines fetch from MIRROR, each only when its recipe has changed: the rehearsal's files, wheels."""
    MIRROR.mkdir(parents=True, exist_ok=True)
    for line in follow(
        [sys.executable, "-m", "rehearsal.build", "--out", MIRROR], log, what="building the rehearsal image"
    ):
        progress(line)
    with buildlock.held(MIRROR / ".wheels.lock", progress, "the consumer's wheels"):
        prepare_wheels(log, progress)


def prepare_wheels(log: Path, progress: Progress) -> None:
    """Fill MIRROR/wheels with the consumer's hashed requirements, for machines that reach no package index."""
    requirements = ROOT / "roles/consumer/files/requirements.txt"
    stamp = hashlib.sha256(requirements.read_bytes()).hexdigest()
    wheels = MIRROR / "wheels"
    if (wheels / ".stamp").is_file() and (wheels / ".stamp").read_text() == stamp:
        return
    progress("downloading the consumer's wheels")
    fresh = MIRROR / "wheels.new"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    listing = fresh / "requirements.txt"
    # pip would judge the conditions by the Python it runs on
    listing.write_text(re.sub(r"(?m) ;.*?(?= \\$)", "", requirements.read_text()))
    pip: list[str | Path] = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    pip += ["--only-binary=:all:", "--python-version", TARGET_PYTHON, "-r", listing, "-d", fresh]
    run(pip, log, what="downloading the consumer's wheels")
    links = "".join(f'<a href="{wheel.name}">{wheel.name}</a>\n' for wheel in sorted(fresh.glob("*.whl")))
    (fresh / "index.html").write_text(links)
    (fresh / ".stamp").write_text(stamp)
    shutil.rmtree(wheels, ignore_errors=True)
    fresh.rename(wheels)


@contextmanager
def region(directory: Path, log: Path) -> Iterator[dict[str, str]]:
    """A local region for the life of the block; yields the environment for its clients.

    It dies with this process, however this process dies.
    """
    environment = {**os.environ, "LOCALCLOUD_DIR": str(directory)}
    localcloud = [sys.executable, "-m", "localcloud"]
    keeper = ["setpriv", "--pdeathsig", "TERM", *localcloud, "run", "--serve", str(MIRROR), "--", "sleep", "infinity"]
    with log.open("a", encoding="utf-8") as out:
        process = subprocess.Popen(
            keeper, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        for _unused in range(120):
            answer = subprocess.run(
                [*localcloud, "env"], check=False, cwd=ROOT, env=environment, capture_output=True, text=True
            )
            if answer.returncode == 0:
                break
            if process.poll() is not None:
                raise StepFailed(f"the region did not start; see {log}")
            time.sleep(0.5)
        else:
            raise StepFailed(f"the region did not answer within a minute; see {log}")
        yield exported(environment, answer.stdout)
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def exported(environment: Mapping[str, str], lines: str) -> dict[str, str]:
    """The environment after a shell has evaluated lines of ``export NAME=value`` and ``unset NAME ...``."""
    result = dict(environment)
    for command, *words in map(shlex.split, lines.splitlines()):
        if command == "export":
            result |= dict(word.split("=", 1) for word in words)
        else:
            result = {name: value for name, value in result.items() if name not in words}
    return result


def key_variables(key: Path) -> dict[str, Any]:
    """The settings of `aws.yml` for a key pair made by make_key; REGION_VARIABLES has those of the local region."""
    return {"aws_public_key_file": f"{key}.pub", "aws_private_key_file": str(key)}


def client(environment: Mapping[str, str], service: str) -> Any:
    """A client of a service in the local region."""
    make: Any = boto3.client  # its types know names of services only, not strings
    return make(
        service,
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        region_name=environment["AWS_DEFAULT_REGION"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
    )


@contextmanager
def plain_machine(environment: Mapping[str, str], key: Path, inventory: Path) -> Iterator[None]:
    """A machine that has only booted, for the life of the block; `inventory` gets it as the only member of the group pcgr."""
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
                raise StepFailed(f"{ids[0]} does not answer on SSH after {BOOT_SECONDS} seconds")
            time.sleep(1)
        yield
    finally:
        ec2.terminate_instances(InstanceIds=ids)
        ec2.get_waiter("instance_terminated").wait(InstanceIds=ids)
        ec2.delete_key_pair(KeyName=name)


def ssh_answers(address: str, port: int) -> bool:
    """Whether a server greets; the connection alone says nothing, user networking takes it before the machine is up."""
    try:
        with socket.create_connection((address, port), timeout=5) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def write_inventory(path: Path, address: str, port: int, key: Path) -> None:
    """An inventory whose group pcgr has one machine of the local region."""
    connection = {
        "ansible_host": address,
        "ansible_port": port,
        "ansible_user": "admin",
        "ansible_ssh_private_key_file": str(key),
        "ansible_ssh_common_args": "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null",
    }
    path.write_text(json.dumps({"pcgr": {"hosts": {"machine": connection}}}))


def make_key(path: Path) -> Path:
    """A throwaway SSH key pair at `path` and `path`.pub."""
    path.unlink(missing_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "pcgr", "-f", path], check=True)
    return path


def playbook(
    name: str, variables: Mapping[str, Any], environment: Mapping[str, str], log: Path, *options: str
) -> Iterator[str]:
    """Run a playbook in a local region; yield the name of each task as it starts."""
    command: list[str | Path] = [
        Path(sys.executable).parent / "ansible-playbook",
        f"playbooks/{name}",
        "-e",
        f"@{REGION_VARIABLES}",
        "-e",
        json.dumps(variables),
    ]
    timed = {**environment, "ANSIBLE_CALLBACKS_ENABLED": "ansible.posix.profile_tasks"}  # seconds per task, in the log
    for line in follow([*command, *options], log, what=f"playbook {name}", env=timed):
        if match := re.match(r"(?:TASK|RUNNING HANDLER) \[(.+?)\]", line):
            yield match[1]
