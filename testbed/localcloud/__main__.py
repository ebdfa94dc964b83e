"""A local EC2, S3 and SQS region: ``python -m localcloud up | down | status | env | run | interrupt | rebalance``."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from localcloud import lifecycle
from localcloud.image import build_base_image
from localcloud.settings import HOST_FROM_GUEST, SSH_PORT, SettingError, Settings, load

START_SECONDS = 180.0  # the API answers about 3 s after the start on an idle machine, the imports being most of it
END_SECONDS = 30.0
PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "socat": "socat",
    "setpriv": "util-linux",
}


class Failure(Exception):
    """What the user is told, in one line."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        settings = load()
        return int(options.action(settings, options) or 0)
    except (Failure, SettingError, OSError) as error:
        print(f"localcloud: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m localcloud", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, action: Any, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(action=action)
        return added

    up = command("up", _up, "start the region in the background")
    run = command("run", _run, "have a region for the life of one command, in whose environment it is")
    for added in (up, run):
        added.add_argument("--serve", metavar="DIR", type=Path, help="serve DIR to the instances over HTTP (mirror)")
        added.add_argument("--port", type=int, help=f"port of the API (default: {lifecycle.PORT}, or any free one)")
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="the command and its arguments")
    command("down", _down, "end the region, its instances and all they hold")
    command("status", _status, "show the instances")
    command("env", _env, "print the shell lines that lead clients to the region")
    interrupt = command("interrupt", _interrupt, "announce the interruption of a spot instance and end it in time")
    interrupt.add_argument("--seconds", type=float, default=120.0, help="notice (default: 120, as on EC2)")
    rebalance = command("rebalance", _rebalance, "recommend to a spot instance to move")
    for added in (interrupt, rebalance):
        added.add_argument("instance_id", metavar="INSTANCE_ID")
    serve = commands.add_parser("serve-region")  # what `up` and `run` start
    serve.add_argument("--base", type=Path, required=True)
    serve.add_argument("--serve", type=Path)
    serve.add_argument("--port", type=int)
    serve.set_defaults(action=_serve)
    return parser


def _up(settings: Settings, options: argparse.Namespace) -> None:
    if lifecycle.is_running(settings):
        print("localcloud: the region is running already")
    else:
        _start(settings, options, [])
    print('set the environment by: eval "$(python -m localcloud env)"')


def _run(settings: Settings, options: argparse.Namespace) -> int:
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        raise Failure("run: found no command, write it after --")
    if lifecycle.is_running(settings):
        raise Failure(f"{settings.state}: found a running region there; set LOCALCLOUD_DIR to another folder")
    # The kernel ends the region, and with it the instances, should this process be killed.
    process = _start(settings, options, ["setpriv", "--pdeathsig", "KILL"])
    try:
        with subprocess.Popen(command, env=os.environ | _environment(settings)) as child:
            signal.signal(
                signal.SIGTERM, lambda *_unused: child.terminate()
            )  # then this process ends as the command does
            while True:
                try:
                    return child.wait()
                except KeyboardInterrupt:  # the command had it too, and decides
                    continue
    finally:
        _end(process, settings)


def _start(settings: Settings, options: argparse.Namespace, prefix: list[str]) -> subprocess.Popen[bytes]:
    """Start the region's process and return when its API answers."""
    for program, package in PROGRAMS.items():
        if not shutil.which(program):
            raise Failure(f"{program}: found no such program, Debian has it in the package {package}")
    if options.serve and not options.serve.is_dir():
        raise Failure(f"--serve {options.serve}: found no such folder")
    base = settings.disk or build_base_image(settings.cache, lambda line: print(f"localcloud: {line}", file=sys.stderr))
    settings.state.mkdir(parents=True, exist_ok=True)
    command = [*prefix, sys.executable, "-m", "localcloud", "serve-region", "--base", str(base)]
    command += ["--serve", str(options.serve.absolute())] if options.serve else []
    command += ["--port", str(options.port)] if options.port is not None else []
    with settings.log.open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        _wait_for_api(settings, process)
    except BaseException:
        _end(process, settings)
        raise
    return process


def _wait_for_api(settings: Settings, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            lines = settings.log.read_text(errors="replace").strip().splitlines() or ["no output"]
            raise Failure(f"the region ended at its start: {lines[-1]} (all of it in {settings.log})")
        if settings.record.exists():
            record = json.loads(settings.record.read_text())
            if record["pid"] == process.pid and "port" in record:
                return
        time.sleep(0.1)
    raise Failure(f"the region did not answer within {START_SECONDS:.0f} s, see {settings.log}")


def _end(process: subprocess.Popen[bytes], settings: Settings) -> None:
    process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        lifecycle.clean(settings)


def _down(settings: Settings, _: argparse.Namespace) -> None:
    if lifecycle.is_running(settings):
        pid = _record(settings)["pid"]
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + END_SECONDS
        while lifecycle.is_running(settings):
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)  # the kernel ends the virtual machines with it
                deadline = time.monotonic() + END_SECONDS
            time.sleep(0.1)
    if settings.state.is_dir():
        lifecycle.clean(settings)


def _serve(settings: Settings, options: argparse.Namespace) -> None:
    from localcloud import daemon  # moto takes seconds to import

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        daemon.serve(settings, options.base, options.port, options.serve)
    except lifecycle.Running:
        raise Failure(f"{settings.state}: found a running region there") from None


def _record(settings: Settings) -> dict[str, Any]:
    if not lifecycle.is_running(settings):
        raise Failure(f"{settings.state}: found no running region, start one by: python -m localcloud up")
    record: dict[str, Any] = json.loads(settings.record.read_text())
    return record


def _environment(settings: Settings) -> dict[str, str]:
    record = _record(settings)
    values = {
        "AWS_ENDPOINT_URL": f"http://{lifecycle.HOST}:{record['port']}",
        "AWS_DEFAULT_REGION": record["region"],
        "AWS_REGION": record["region"],
        "AWS_ACCESS_KEY_ID": "localcloud",
        "AWS_SECRET_ACCESS_KEY": "localcloud",
        "AWS_EC2_METADATA_DISABLED": "true",
        "LOCALCLOUD_GUEST_ENDPOINT_URL": f"http://{HOST_FROM_GUEST}:{record['port']}",
        "LOCALCLOUD_AMI": record["image"],
        "LOCALCLOUD_SSH_PORT": str(SSH_PORT),
    }
    if record["mirror_port"]:
        values["LOCALCLOUD_MIRROR_URL"] = f"http://{HOST_FROM_GUEST}:{record['mirror_port']}"
    return values


def _env(settings: Settings, _unused: argparse.Namespace) -> None:
    for name, value in _environment(settings).items():
        print(f"export {name}={value}")


def _interrupt(settings: Settings, options: argparse.Namespace) -> None:
    when = _call(settings, "interrupt", {"instance_id": options.instance_id, "seconds": options.seconds})
    print(f"{options.instance_id} ends at {when}")


def _rebalance(settings: Settings, options: argparse.Namespace) -> None:
    when = _call(settings, "rebalance", {"instance_id": options.instance_id})
    print(f"{options.instance_id} was told to move at {when}")


def _call(settings: Settings, name: str, values: Mapping[str, Any]) -> str:
    url = f"http://{lifecycle.HOST}:{_record(settings)['port']}/_localcloud/{name}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, json.dumps(values).encode())) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        raise Failure(error.read().decode()) from None


def _status(settings: Settings, _unused: argparse.Namespace) -> None:
    import boto3
    from rich.console import Console
    from rich.table import Table

    values = _environment(settings)
    client = boto3.client(
        "ec2", endpoint_url=values["AWS_ENDPOINT_URL"], region_name=values["AWS_DEFAULT_REGION"],
        aws_access_key_id="localcloud", aws_secret_access_key="localcloud",  # noqa: S106 - moto takes any
    )  # fmt: skip
    title = f"{values['AWS_DEFAULT_REGION']} at {values['AWS_ENDPOINT_URL']}"
    table = Table("instance", "name", "type", "state", "address", "ssh", "up", title=title)
    for page in client.get_paginator("describe_instances").paginate():
        for instance in (instance for reservation in page["Reservations"] for instance in reservation["Instances"]):
            table.add_row(*_row(instance))
    Console().print(table)


def _row(instance: Mapping[str, Any]) -> tuple[str, ...]:
    state, address = instance["State"]["Name"], instance.get("PublicIpAddress", "")
    name = next((tag["Value"] for tag in instance.get("Tags", []) if tag["Key"] == "Name"), "")
    kind = f"{instance['InstanceType']} {instance.get('InstanceLifecycle', '')}".strip()
    running = state == "running"
    up = str(datetime.now(UTC) - instance["LaunchTime"]).split(".", 1)[0] if running else ""
    ssh = f"ssh -p {SSH_PORT} admin@{address}" if running and address else ""
    return instance["InstanceId"], name, kind, state, address, ssh, up


if __name__ == "__main__":
    sys.exit(main())
