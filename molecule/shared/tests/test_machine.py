"""A machine after the site play, looked at from outside: what is there is compared with what was asked for, not with templates."""

from __future__ import annotations

import gzip
import io
import json
import re
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

testinfra_hosts = ["ansible://pcgr"]
Asked = Callable[[str], Any]
PROJECT = Path(__file__).resolve().parents[3]
ROLES = PROJECT / "roles"
EXAMPLE = PROJECT / "examples/demo-000001-somatic.tar.gz"


def properties(host: Any, unit: str, *names: str) -> dict[str, str]:
    lines = host.check_output(f"systemctl show {unit} --property {','.join(names)}").splitlines()
    return dict(line.split("=", 1) for line in lines)


def read(host: Any, path: str) -> bytes:
    """A file of the machine, also one that is not text."""
    command = ["docker", "exec", host.backend.host, "cat", path]
    return subprocess.run(command, check=True, capture_output=True).stdout


def ownership(host: Any, path: str) -> tuple[str, str, str]:
    """Owner, group and mode."""
    owner, group, mode = host.check_output(f"stat --format '%U %G %a' {path}").split()
    return owner, group, mode


def tarball(**members: bytes) -> bytes:
    """A sample's tarball; `__` in a name stands for a dot."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name.replace("__", "."))
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def fresh_name() -> str:
    """A sample's name that no earlier look at this machine has used."""
    return f"demo-{time.time_ns() // 10**8 % 10**6:06}-somatic"


def slow_sample(seconds: int) -> bytes:
    """The example's variants, made to last."""
    with tarfile.open(EXAMPLE) as archive:
        (member,) = [one for one in archive if one.name.endswith(".vcf.gz")]
        stream = archive.extractfile(member)
        assert stream
        first, rest = gzip.decompress(stream.read()).split(b"\n", 1)
    return tarball(sample__vcf=first + b"\n##rehearsal_seconds=%d\n" % seconds + rest)


def submit(host: Any, spool: str, name: str, content: bytes) -> None:
    """Write beside, then rename, as the spool asks."""
    command = ["docker", "exec", "--interactive", host.backend.host, "sh", "-c"]
    script = f"cat >{spool}/inbox/.{name} && mv {spool}/inbox/.{name} {spool}/inbox/{name}"
    subprocess.run([*command, script], check=True, input=content)


def eventually(look: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (found := look()) and time.monotonic() < end:
        time.sleep(0.5)
    return found


def test_no_unit_has_failed(host: Any) -> None:
    assert host.check_output("systemctl --failed --no-legend --plain") == ""


def test_no_unit_waits_for_itself(host: Any) -> None:
    """systemd would drop a job to get out of it, at a boot or at a shutdown, and say so in the journal only."""
    assert "cycle" not in host.run("systemd-analyze verify multi-user.target").stderr


def test_the_engine_runs_as_asked(host: Any, asked: Asked) -> None:
    assert host.service("docker").is_enabled
    assert host.service("docker").is_running
    info = json.loads(host.check_output("docker info --format '{{ json . }}'"))
    registries = info["RegistryConfig"]
    assert [url.rstrip("/") for url in registries["Mirrors"] or []] == asked("docker_registry_mirrors")
    plain = {name for name, index in registries["IndexConfigs"].items() if not index["Secure"]}
    assert plain == set(asked("docker_insecure_registries"))
    assert info["LiveRestoreEnabled"] == asked("docker_daemon_settings").get("live-restore", False)
    container = host.check_output(f"docker create {runtime(host)['image']} true")
    log = json.loads(host.check_output(f"docker inspect --format '{{{{ json .HostConfig.LogConfig }}}}' {container}"))
    host.check_output(f"docker rm {container}")
    assert log["Config"] == {
        "max-size": asked("docker_log_max_size"),
        "max-file": str(asked("docker_log_max_files")),
    }


def test_nothing_is_reachable_from_outside(host: Any, asked: Asked) -> None:
    where = [line.split()[3] for line in host.check_output("ss --no-header --listening --tcp --numeric").splitlines()]
    assert [one for one in where if not one.startswith(("127.", "[::1]"))] == []
    assert ownership(host, "/run/docker.sock") == ("root", "docker", "660")


def test_user(host: Any, asked: Asked) -> None:
    user = host.user(asked("base_user"))
    assert (user.shell, user.home, user.group) == ("/usr/sbin/nologin", "/var/lib/pcgr", asked("base_user"))
    assert user.uid < 1000
    assert user.password in ("!*", "!", "*", "!!")


def test_folders(host: Any, asked: Asked) -> None:
    root, user = asked("pcgr_root"), asked("base_user")
    assert {
        path: ownership(host, path) for path in ("/etc/pcgr", root, f"{root}/bundles", f"{root}/vep")
    } == dict.fromkeys(("/etc/pcgr", root, f"{root}/bundles", f"{root}/vep"), ("root", "root", "755"))
    assert ownership(host, f"{root}/work") == (user, user, "700")
    assert ownership(host, f"{root}/log") == (user, user, "750")
    assert ownership(host, "/var/lib/pcgr") == (user, user, "750")
    spool = asked("consumer_spool_dir")
    assert ownership(host, spool) == (user, user, "750")
    for folder in ("inbox", "claimed", "done", "failed"):
        assert ownership(host, f"{spool}/{folder}") == (user, user, "770")
    other = host.check_output("find / -xdev -path /proc -prune -o -name bundles -type d -print").split()
    assert other == [f"{root}/bundles"]  # no default is used beside what was asked for


def test_reference_data(host: Any, asked: Asked) -> None:
    root = asked("pcgr_root")
    for assembly in asked("pcgr_assemblies"):
        bundle = f"{root}/bundles/20260620/data/{assembly}"
        assert "20260620" in host.file(f"{bundle}/.PCGR_BUNDLE_VERSION").content_string
        assert host.file(f"{root}/vep/115/homo_sapiens/115_{assembly.replace('grch', 'GRCh')}").is_directory
    assert set(host.file(f"{root}/bundles/20260620/data").listdir()) == set(asked("pcgr_assemblies"))
    assert host.check_output(f"find {root}/bundles {root}/vep -perm /022 ! -type l") == ""
    assert host.check_output(f"find {root}/bundles {root}/vep ! -user root") == ""


def runtime(host: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(host.file("/etc/pcgr/runtime.json").content_string)
    return found


def test_the_tool_runs(host: Any) -> None:
    image = runtime(host)["image"]
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", image)
    assert host.check_output(f"docker run --rm --network none --read-only {image} pcgr --version") == "pcgr 2.3.2"


def test_the_service_is_confined(host: Any, asked: Asked) -> None:
    root = asked("pcgr_root")
    assert host.service("pcgr-consumer").is_enabled
    show = properties(
        host, "pcgr-consumer", "User", "Group", "SupplementaryGroups", "NoNewPrivileges", "ProtectSystem", "ProtectHome",
        "CapabilityBoundingSet", "Restart", "ReadWritePaths", "ExecStart",
    )  # fmt: skip
    paths = show.pop("ReadWritePaths").split()
    assert set(paths) == {f"{root}/work", f"{root}/log", "/var/lib/pcgr", asked("consumer_spool_dir")}
    assert f"path={asked('consumer_path')}/bin/pcgr-consumer ;" in show.pop("ExecStart")
    assert show == {
        "User": asked("consumer_user"),
        "Group": asked("consumer_user"),
        "SupplementaryGroups": "docker",
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "ProtectHome": "yes",
        "CapabilityBoundingSet": "",
        "Restart": "on-failure",
    }


def test_the_machine_ends_itself_only_when_asked(host: Any, asked: Asked) -> None:
    wants = properties(host, "pcgr-consumer", "Wants")["Wants"].split()
    ends = asked("consumer_poweroff_when_drained")
    assert ("pcgr-drained.path" in wants) is ends
    assert ("pcgr-max-age.timer" in wants) is (ends and asked("consumer_max_age_hours") > 0)
    timers = properties(host, "pcgr-max-age.timer", "TimersMonotonic")["TimersMonotonic"]
    hours = asked("consumer_max_age_hours") or 24
    days, hours = divmod(hours, 24)
    assert (
        f"OnBootUSec={' '.join(filter(None, [f'{days}d' if days else '', f'{hours}h' if hours else '']))} ;" in timers
    )


def test_the_consumers_environment_is_the_locked_one(host: Any, asked: Asked) -> None:
    path = asked("consumer_path")
    assert host.check_output(f"find {path} ! -user root -o -perm /022 ! -type l") == ""
    listing = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
    installed = json.loads(host.check_output(f"{path}/bin/python -c '{listing}'"))
    assert installed.pop("umccr-pcgr")
    lock = (ROLES / "consumer/files/requirements.txt").read_text()
    pins = dict(re.findall(r"(?m)^([\w.-]+)==([\w.]+)", lock))
    if host.check_output(f"{path}/bin/python --version") >= "Python 3.11":
        del pins["tomli"]  # the standard library has it there
    assert installed == pins


@pytest.fixture(scope="module")
def running(host: Any) -> None:
    """The service as a boot would start it."""
    host.check_output("systemctl start pcgr-consumer")


@pytest.mark.usefixtures("running")
def test_a_sample_is_reported_within_its_bounds(host: Any, asked: Asked) -> None:
    spool, name = asked("consumer_spool_dir"), fresh_name()
    submit(host, spool, f"{name}.tar.gz", slow_sample(4))
    container = eventually(lambda: host.check_output("docker ps --quiet"))
    assert container, host.check_output("journalctl --unit pcgr-consumer --no-pager")
    bounds = json.loads(host.check_output(f"docker inspect --format '{{{{ json .HostConfig }}}}' {container}"))
    uid = host.user(asked("consumer_user"))
    assert host.check_output(f"docker inspect --format '{{{{ .Config.User }}}}' {container}") == f"{uid.uid}:{uid.gid}"
    limits = asked("consumer_limits")
    factor = {"m": 2**20, "g": 2**30}[limits["memory"][-1]]
    assert bounds["Memory"] == int(limits["memory"][:-1]) * factor
    assert bounds["NanoCpus"] == limits["cpus"] * 10**9
    assert bounds["PidsLimit"] == limits["pids"]
    assert (bounds["NetworkMode"], bounds["ReadonlyRootfs"], bounds["CapDrop"]) == ("none", True, ["ALL"])

    result = f"{spool}/done/{name}-output.tar.gz"
    assert eventually(lambda: host.file(result).exists), host.check_output("journalctl --unit pcgr-consumer --no-pager")
    with tarfile.open(fileobj=io.BytesIO(read(host, result))) as archive:
        names = archive.getnames()
        stream = archive.extractfile(f"{name}/provenance.json")
        assert stream
        provenance = json.load(stream)
    assert f"{name}/{name}.pcgr.{asked('pcgr_assemblies')[0]}.html" in names
    assert provenance["release"] == asked("pcgr_release")


@pytest.mark.usefixtures("running")
def test_a_tarball_beyond_its_bounds_is_refused(host: Any, asked: Asked) -> None:
    spool, name = asked("consumer_spool_dir"), fresh_name()
    most = asked("consumer_limits")["members"]
    submit(host, spool, f"{name}.tar.gz", tarball(**{f"s{number}__cna__tsv": b"" for number in range(most + 1)}))
    report = f"{spool}/failed/{name}-failed.json"
    assert eventually(lambda: host.file(report).exists)
    reason = json.loads(read(host, report))["reason"]
    assert f"more than {most} " in reason
    assert "\n" not in reason


def test_nothing_of_the_samples_is_left_but_the_mark(host: Any, asked: Asked) -> None:
    assert host.file("/var/lib/pcgr/processed-samples").exists
    assert eventually(lambda: host.check_output(f"ls -A {asked('pcgr_root')}/work") == "", 10)
    assert host.check_output("docker ps --all --quiet") == ""
    assert host.check_output(f"ls -A {asked('consumer_spool_dir')}/inbox") == ""
