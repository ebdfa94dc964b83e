"""A local EC2, S3 and SQS region: ``python -m localcloud up | down | status | env | run | interrupt | rebalance``."""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import shlex
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
from typing import Any, NoReturn

from localcloud import clients, lifecycle
from localcloud.image import build_base_image
from localcloud.settings import NOTICE_SECONDS, SSH_PORT, SettingError, Settings, load

START_SECONDS = 180.0  # on an idle host the API answers after about 3 s, most of them spent on imports
END_SECONDS = 30.0
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SI_KERNEL = 0x80  # si_code of a signal that no process sent, such as Ctrl-C (sigaction(2))
PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "socat": "socat",
    "setpriv": "util-linux",
}


DOWN_COMMAND = "python -m localcloud down"


class CommandError(Exception):
    """A command failed; the text is one line for the user."""


class _Parser(argparse.ArgumentParser):
    """A parser that reports wrong usage in one line."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with code 2."""
        self.exit(2, f"localcloud: {message.removeprefix('argument ')}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code: 1 failed, 2 wrong usage, 128 plus the number of the signal that ended it."""
    _restore_signals()
    options = _parser().parse_args(arguments)
    try:
        settings = load()
        return int(options.action(settings, options) or 0)
    except (CommandError, SettingError, OSError) as error:
        print(f"localcloud: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _restore_signals() -> None:
    """React to signals even if the parent process ignores or blocks them, as shells do for background jobs."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if it is ignored, the exit codes of children are lost
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _exit_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {*STOP_SIGNALS, signal.SIGCHLD})


def _exit_on(number: int, _unused: object) -> NoReturn:
    sys.exit(128 + number)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m localcloud", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, action: Any, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(action=action)
        return added

    up = command("up", _up, "start the region in the background")
    run = command("run", _run, "start a region, run COMMAND with its environment set, then end the region")
    for added in (up, run):
        added.add_argument("--serve", metavar="DIR", type=Path, help="serve DIR to the instances over HTTP (mirror)")
        added.add_argument(
            "--port", type=_port, help=f"port of the API (default: {lifecycle.PORT}, or any free one; 0: any)"
        )
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="the command and its arguments")
    command("down", _down, "end the region and its instances, and remove their data")
    command("status", _status, "show the instances")
    command("env", _env, "print shell commands that direct clients to the region and keep them away from AWS")
    interrupt = command("interrupt", _interrupt, "announce the interruption of a spot instance, then terminate it")
    interrupt.add_argument("--seconds", type=_seconds, default=120.0, help="notice (default: 120, as on EC2)")
    rebalance = command("rebalance", _rebalance, "send a rebalance recommendation to a spot instance")
    for added in (interrupt, rebalance):
        added.add_argument("instance_id", metavar="INSTANCE_ID")
    serve = commands.add_parser("serve-region")  # what `up` and `run` start
    serve.add_argument("--base", type=Path, required=True)
    serve.add_argument("--serve", type=Path)
    serve.add_argument("--port", type=_port)
    serve.set_defaults(action=_serve)
    return parser


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"found {text}, allowed 0 to 65535")
    return int(text)


def _seconds(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 <= found <= NOTICE_SECONDS:
        raise argparse.ArgumentTypeError(f"found {text}, allowed 0 to {NOTICE_SECONDS}")
    return found


def _up(settings: Settings, options: argparse.Namespace) -> None:
    if lifecycle.is_running(settings):
        _refuse_other_options(_record(settings), options)
        print("localcloud: the region is running already")
    else:
        _start(settings, options, [])
    print('set the environment by: eval "$(python -m localcloud env)"')


def _refuse_other_options(record: Mapping[str, Any], options: argparse.Namespace) -> None:
    """Refuse options that the running region does not have."""
    served = str(options.serve.absolute()) if options.serve else None
    for name, wanted, found in (
        ("--port", options.port or None, record["port"]),
        ("--serve", served, record["directory"]),
    ):
        if wanted not in (None, found):
            raise CommandError(
                f"{name}: found {wanted}, the region is running with {found or 'none'}; end it by: {DOWN_COMMAND}"
            )


def _run(settings: Settings, options: argparse.Namespace) -> int:
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        raise CommandError("run: found no command, write it after --")
    if not shutil.which(command[0]):
        raise CommandError(f"run: {command[0]}: found no such program")
    if lifecycle.is_running(settings):
        raise CommandError(f"{settings.state}: found a running region there; set LOCALCLOUD_DIR to another folder")
    # If this process is killed, the kernel ends the region and its instances.
    process = _start(settings, options, ["setpriv", "--pdeathsig", "KILL"])
    try:
        return _supervise(command, _client_environment(settings))
    finally:
        _end(process, settings)


def _supervise(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command and forward the signals sent to this process; return its exit code as a shell would."""
    awaited = {*STOP_SIGNALS, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    with subprocess.Popen(
        command, env=environment,
        preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, awaited),  # noqa: PLW1509 - there are no threads
    ) as child:  # fmt: skip
        while child.poll() is None:
            info = signal.sigtimedwait(awaited, 1.0)
            # Ctrl-C and a hangup of the terminal reach the command too; a second signal would interrupt its shutdown.
            if info and info.si_signo in STOP_SIGNALS and info.si_code != SI_KERNEL:
                child.send_signal(info.si_signo)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _start(settings: Settings, options: argparse.Namespace, prefix: list[str]) -> subprocess.Popen[bytes]:
    """Start the region's process; return it once its API answers."""
    for program, package in PROGRAMS.items():
        if not shutil.which(program):
            raise CommandError(f"{program}: found no such program, Debian has it in the package {package}")
    if options.serve and not options.serve.is_dir():
        raise CommandError(f"--serve {options.serve}: found no such folder")
    base = settings.disk or build_base_image(settings.cache, lambda line: print(f"localcloud: {line}", file=sys.stderr))
    settings.state.mkdir(parents=True, exist_ok=True)
    command = [*prefix, sys.executable, "-m", "localcloud", "serve-region", "--base", str(base)]
    command += ["--serve", str(options.serve.absolute())] if options.serve else []
    command += ["--port", str(options.port)] if options.port is not None else []
    with settings.log.open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            env=clients.without_conflicting(os.environ),
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
            raise CommandError(f"the region ended at its start: {lines[-1]} (all of it in {settings.log})")
        if settings.record.exists():
            record = json.loads(settings.record.read_text())
            if record["pid"] == process.pid and "port" in record:
                return
        time.sleep(0.1)
    raise CommandError(f"the region did not answer within {START_SECONDS:.0f} s, see {settings.log}")


def _end(process: subprocess.Popen[bytes], settings: Settings) -> None:
    process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        lifecycle.clean(settings)


def _down(settings: Settings, _unused: argparse.Namespace) -> None:
    if lifecycle.is_running(settings):
        pid = json.loads(settings.record.read_text())["pid"]
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
    except lifecycle.AlreadyRunning:
        raise CommandError(f"{settings.state}: found a running region there") from None


def _record(settings: Settings) -> dict[str, Any]:
    if not lifecycle.is_running(settings):
        raise CommandError(f"{settings.state}: found no running region, start one by: python -m localcloud up")
    record: dict[str, Any] = json.loads(settings.record.read_text())
    if "port" not in record:
        raise CommandError(f"{settings.state}: found a region that is still starting, try again")
    return record


def _client_environment(settings: Settings) -> dict[str, str]:
    """Return the environment of this process, changed for clients of the region."""
    return clients.without_conflicting(os.environ) | clients.environment(settings, _record(settings), os.environ)


def _env(settings: Settings, _unused: argparse.Namespace) -> None:
    values = clients.environment(settings, _record(settings), os.environ)
    if removed := clients.conflicting(os.environ):
        print("unset", *removed)
    for name, value in values.items():
        print(f"export {name}={shlex.quote(value)}")


def _interrupt(settings: Settings, options: argparse.Namespace) -> None:
    when = _call_region(settings, "interrupt", {"instance_id": options.instance_id, "seconds": options.seconds})
    print(f"{options.instance_id} ends at {when}")


def _rebalance(settings: Settings, options: argparse.Namespace) -> None:
    when = _call_region(settings, "rebalance", {"instance_id": options.instance_id})
    print(f"{options.instance_id} received a rebalance recommendation at {when}")


def _call_region(settings: Settings, name: str, values: Mapping[str, Any]) -> str:
    url = f"http://{lifecycle.HOST}:{_record(settings)['port']}/_localcloud/{name}"
    try:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(urllib.request.Request(url, json.dumps(values).encode())) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        raise CommandError(error.read().decode()) from None


def _status(settings: Settings, _unused: argparse.Namespace) -> None:
    values = _client_environment(settings)
    os.environ.clear()
    os.environ.update(values)
    import boto3

    record = _record(settings)
    url = f"http://{lifecycle.HOST}:{record['port']}"
    print(f"{record['region']} at {url}")
    pages = boto3.client("ec2").get_paginator("describe_instances").paginate()
    instances = [found for page in pages for reservation in page["Reservations"] for found in reservation["Instances"]]
    for instance in instances:
        print("\n".join(_instance_lines(instance)))
    if not instances:
        print("no instances")


def _instance_lines(instance: Mapping[str, Any]) -> list[str]:
    """Describe an instance in at most two lines, never truncated, so that ids and commands can be copied."""
    state, address = instance["State"]["Name"], instance.get("PublicIpAddress", "")
    name = next((tag["Value"] for tag in instance.get("Tags", []) if tag["Key"] == "Name"), "")
    kind = f"{instance['InstanceType']} {instance.get('InstanceLifecycle', '')}".strip()
    running = state == "running"
    age = str(datetime.now(UTC) - instance["LaunchTime"]).split(".", 1)[0] if running else ""
    lines = [f"{instance['InstanceId']:19}  {state:13}  {kind:14}  {age:8}  {name}".rstrip()]
    return lines + ([f"  ssh -p {SSH_PORT} admin@{address}"] if running and address else [])


if __name__ == "__main__":
    sys.exit(main())
