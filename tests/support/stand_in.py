#!/usr/bin/env python3
"""Stands in for `docker` or `apptainer`, by the name it is called with; what it runs is isolated for real, by bubblewrap.

Strict: a flag that the real program does not have, a bind of what does not exist, or a strange value is refused as the real one
refuses it. An image is a folder with programs in `bin`, shown as /image over the host's /usr. Containers of "docker" live in
sessions of their own and survive their client, as a daemon's do; "apptainer" does not die with its parent either.
"""

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

BASE = Path(sys.argv[0]).parent
# The options of `apptainer exec` as its source of August 2026 has them (cmd/internal/cli/action_flags.go); not the short forms.
SWITCHES = """
allow-setuid boot cleanenv compat contain containall disable-cache fakeroot ignore-fakeroot-command ignore-subuid
ignore-userns ipc keep-privs net no-eval no-home no-https no-init no-nv no-pid no-privs no-rocm no-umask nv nvccli
oom-kill-disable passphrase pid rocm sharens underlay unsquash userns uts writable writable-tmpfs""".split()  # noqa: SIM905
VALUES = """
add-caps app apply-cgroups authfile bind blkio-weight blkio-weight-device containlibs cpu-shares cpus cpuset-cpus
cpuset-mems cwd device dns docker-host drop-caps env env-file fusemount home hostname memory memory-reservation memory-swap mount
netns-path network network-args no-env no-mount overlay pem-path pids-limit pwd scratch security tmpdir workdir""".split()  # noqa: SIM905


def isolated(tree, binds, environment, argv, *, network, tmp, missing, read_only=True, extra=()):
    """Return the bwrap command; `missing`: shell code for a command that is not in the image."""
    command = [
        "bwrap",
        "--unshare-user",
        "--unshare-pid",
        "--cap-drop",
        "ALL",
        "--clearenv",
        "--ro-bind",
        "/usr",
        "/usr",
    ]
    for name in ("bin", "lib", "lib64"):
        command += ["--symlink", f"usr/{name}", f"/{name}"]
    command += ["--ro-bind", tree, "/image", "--proc", "/proc", "--dev", "/dev", *tmp, *extra]
    for here, inside, writable in binds:
        command += ["--bind" if writable else "--ro-bind", here, inside]
    for name, value in {"PATH": "/image/bin:/usr/bin", **environment}.items():
        command += ["--setenv", name, value]
    command += [] if network else ["--unshare-net"]
    command += ["--remount-ro", "/"] if read_only else []
    look = f'command -v "$1" >/dev/null || {{ {missing}; }}; exec "$@"'
    return [*command, "--", "/bin/sh", "-c", look, "sh", *argv]


def split(binds, fail):
    """Parse `here:inside[:ro]`; returns (here, inside, writable)."""
    found = []
    for bind in binds:
        here, inside, *options = bind.split(":")
        if options not in ([], ["ro"]) or not inside.startswith("/"):
            fail(f"invalid bind {bind}")
        if not Path(here).exists():
            fail(f"mount source {here} doesn't exist")
        found.append((here, inside, not options))
    return found


class Strict(argparse.ArgumentParser):
    """Refuses with the exit code and the words of the real program."""

    def __init__(self, code, complaint):
        super().__init__(allow_abbrev=False, add_help=False)
        self.code, self.complaint = code, complaint

    def error(self, message):
        """Print the complaint and exit."""
        print(self.complaint % message, file=sys.stderr)
        sys.exit(self.code)


def docker(arguments):
    """Do what `docker` would do."""
    containers, images = BASE / "containers", BASE / "images"
    verb, *rest = arguments
    if verb == "run":
        return run_container(rest, containers, images)
    if verb == "ps":
        assert rest == ["--all", "--filter", "label=umccr.pcgr.attempt", "--format", "{{.Names}}"], rest
        print("\n".join(path.name for path in containers.iterdir()))
    elif verb == "rm":
        assert rest[0] == "--force", rest
        for name in rest[1:]:
            try:
                pid = int((containers / name).read_text())
            except FileNotFoundError:
                print(f"Error: No such container: {name}", file=sys.stderr)
                return 1
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            (containers / name).unlink(missing_ok=True)
    elif verb == "image":
        if not (images / rest[-1]).exists():
            print(f"Error: No such image: {rest[-1]}", file=sys.stderr)
            return 1
        print(rest[-1])
    return 0


def run_container(arguments, containers, images):
    """Do what `docker run` would do; returns the exit code."""
    parser = Strict(125, "docker: %s")
    for flag in ("--rm", "--read-only"):
        parser.add_argument(flag, action="store_true", required=True)
    for flag in ("--name", "--label", "--network", "--user", "--tmpfs", "--memory", "--cpus", "--pids-limit"):
        parser.add_argument(flag, required=True)
    for flag in ("--cap-drop", "--security-opt", "-e", "-v"):
        parser.add_argument(flag, action="append", required=True)
    parser.add_argument("image")
    parser.add_argument("argv", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    if not (images / options.image).exists():
        parser.error(f"Error response from daemon: No such image: {options.image}")
    if not re.fullmatch(r"[0-9]+[bkmg]?", options.memory) or options.user != f"{os.getuid()}:{os.getgid()}":
        parser.error("bad memory or user")
    command = isolated(
        (images / options.image).read_text(),
        split(options.v, parser.error),
        dict(value.split("=", 1) for value in options.e),
        options.argv,
        network=options.network != "none",
        tmp=["--tmpfs", options.tmpfs],
        extra=["--as-pid-1"],  # the command's end is the container's
        missing='echo "exec: \\"$1\\": executable file not found in \\$PATH" >&2; exit 127',
    )
    process = subprocess.Popen(command, start_new_session=True)
    (containers / options.name).write_text(str(process.pid))
    code = process.wait()
    (containers / options.name).unlink(missing_ok=True)
    return code if code >= 0 else 128 - code


def fatal(message):
    """Fail as Apptainer fails before it runs anything."""
    print(f"FATAL:   {message}", file=sys.stderr)
    sys.exit(255)


def apptainer(arguments):
    """Do what `apptainer exec` would do; returns the exit code."""
    parser = Strict(1, 'Error for command "exec": %s')
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("verb", choices=["exec"])
    for name in SWITCHES:
        parser.add_argument(f"--{name}", action="store_true")
    for name in VALUES:
        parser.add_argument(f"--{name}", action="append", default=[])
    parser.add_argument("image")
    parser.add_argument("argv", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    if not Path(options.image).is_file():
        fatal(f"could not open image {options.image}: failed to retrieve path: no such file or directory")
    if options.network and (not options.net or options.network != ["none"]):
        fatal("non-root users can only use --network=none unless permitted by the administrator")
    environment = dict(value.split("=", 1) for value in options.env)
    environment.pop("HOME", None)  # warned of and ignored
    if not options.cleanenv:
        environment = {name: value for name, value in os.environ.items() if name != "PATH"} | environment
    contained = options.containall or options.contain
    tmp = ["--tmpfs", "/tmp"] if contained else ["--bind", "/tmp", "/tmp"]
    if options.workdir:
        if not Path(options.workdir[0]).is_dir():
            fatal(f"workdir {options.workdir[0]} is not a directory")
        inner = Path(options.workdir[0], "tmp")
        inner.mkdir(exist_ok=True)
        tmp = ["--bind", str(inner), "/tmp"]
    home = str(Path.home())
    extra = []
    if not options.no_home:
        extra = ["--tmpfs", home] if contained else ["--bind", home, home]
    command = isolated(
        Path(options.image).read_text(),
        split(options.bind, fatal),
        environment,
        options.argv,
        network=not options.net,
        tmp=tmp,
        missing='echo "FATAL:   \\"$1\\": executable file not found in \\$PATH" >&2; exit 255',
        read_only=not options.writable_tmpfs,
        extra=extra,
    )
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit({"docker": docker, "apptainer": apptainer}[Path(sys.argv[0]).name](sys.argv[1:]))
