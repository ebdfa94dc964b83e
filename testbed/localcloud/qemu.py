"""One virtual machine: a QEMU process and its control socket (QMP, see QEMU's "QMP Reference Manual")."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from localcloud.settings import GIB, HOST_FROM_GUEST, SSH_PORT

START_SECONDS = 60.0  # QEMU opens its control socket within about 0.3 s on an idle machine
ANSWER_SECONDS = 30.0  # QMP commands used here answer at once; more means a stuck process
POWERDOWN_EVERY = 3.0  # seconds; a guest that is still booting does not hear the first press of the button


class MachineError(Exception):
    """A virtual machine that does not start or refuses a command; one line."""


@dataclass(frozen=True)
class Spec:
    """What a virtual machine is made of. ``disks`` maps volume ids to qcow2 files, the root volume first; ``accelerator``
    is QEMU's arguments for accelerator and CPU; ``console`` and ``log`` are files, the sockets are Unix sockets;
    ``command`` may stand for another program in place of QEMU's."""

    instance_id: str
    product: str
    vcpus: int
    memory_mib: int
    mac: str
    accelerator: Sequence[str]
    disks: Mapping[str, Path]
    control_socket: Path
    metadata_socket: Path
    console: Path
    log: Path
    public_ip: str | None = None

    def command(self) -> list[str]:
        """The command line of QEMU."""
        # The guest finds the metadata service on its own link, as on EC2; each connection to it becomes a socat process.
        network = (
            f"user,id=net0,net=169.254.0.0/16,host={HOST_FROM_GUEST},dns=169.254.0.3,dhcpstart=169.254.1.15,"
            f"guestfwd=tcp:169.254.169.254:80-cmd:socat - UNIX-CONNECT:{self.metadata_socket}"
        )
        if self.public_ip:
            network += f",hostfwd={_forward(self.public_ip)}-:22"
        # Both begin with ec2, by which cloud-init knows EC2 (cloud-init's ds-identify).
        uuid = "ec2" + self.instance_id.removeprefix("i-").ljust(29, "0")[:29]
        uuid = f"{uuid[:8]}-{uuid[8:12]}-{uuid[12:16]}-{uuid[16:20]}-{uuid[20:]}"
        arguments = ["qemu-system-x86_64", "-name", self.instance_id, "-nodefaults", "-no-user-config"]
        arguments += ["-display", "none", "-no-shutdown", *self.accelerator]
        arguments += ["-smp", str(self.vcpus), "-m", str(self.memory_mib)]
        arguments += ["-smbios", f"type=1,manufacturer=Amazon EC2,product={self.product},serial={uuid},uuid={uuid}"]
        arguments += ["-qmp", f"unix:{self.control_socket},server=on,wait=off", "-serial", f"file:{self.console}"]
        arguments += ["-device", "virtio-rng-pci", "-netdev", network]
        arguments += ["-device", f"virtio-net-pci,netdev=net0,mac={self.mac},romfile="]
        for number, (volume_id, path) in enumerate(self.disks.items()):
            arguments += ["-blockdev", json.dumps(_node(volume_id, path))]
            device = _device(volume_id) | ({"bootindex": 1} if number == 0 else {})
            arguments += ["-device", json.dumps(device)]
        return arguments


@dataclass
class Machine:
    """A running virtual machine. Made by ``launch``; the state of the rest is asked from QEMU each time."""

    spec: Spec
    process: subprocess.Popen[bytes]
    control: Control
    public_ip: str | None
    ends_at: float | None = None  # time.monotonic() at which power is cut, once it is going down
    pressed_at: float = 0.0
    seen: bool = False  # the guest has asked the metadata service since its last boot
    backups: dict[str, str] = field(default_factory=dict)  # volume id of each snapshot id in the making

    @classmethod
    def launch(cls, spec: Spec) -> Self:
        """Start QEMU and wait for its control socket; raises MachineError.

        The kernel kills QEMU when the calling THREAD ends, however that comes about: call it from one that lives as
        long as the region.
        """
        with spec.log.open("ab") as log:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *spec.command()],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            return cls(spec, process, Control(spec.control_socket, process), spec.public_ip)
        except MachineError as error:
            process.kill()
            process.wait()
            raise MachineError(f"{spec.instance_id}: {error}: {spec.log.read_text(errors='replace')[-500:]}") from None

    def status(self) -> str:
        """QEMU's run state (``running``, ``shutdown`` once the guest is off, ...) or ``gone``."""
        if self.process.poll() is not None:
            return "gone"
        try:
            return str(self.control("query-status")["status"])
        except MachineError:
            self.process.kill()  # a process that does not answer is as good as dead, and must not keep the disks
            self.process.wait()
            return "gone"

    def going_down(self, grace: float) -> bool:
        """Press the power button, again while the guest does not hear it; True once it is off or ``grace`` s are over."""
        now = time.monotonic()
        if self.ends_at is None:
            self.ends_at = now + grace
        if self.status() in ("shutdown", "gone"):
            return True
        if now >= self.ends_at:
            return True
        if now - self.pressed_at >= POWERDOWN_EVERY:
            self.pressed_at = now
            self.control("system_powerdown")
        return False

    def pause(self) -> None:
        self.control("stop")

    def reset(self) -> None:
        """Boot again, whether the guest runs, is paused or is off."""
        self.ends_at = None
        self.pressed_at = 0.0
        self.seen = False
        self.control("system_reset")
        self.control("cont")

    def kill(self) -> None:
        """End the process now; what the guest wrote before is in the files."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.control.close()

    def quit(self) -> None:
        """End the process, its disks closed properly."""
        if self.process.poll() is None:
            try:
                self.control("quit")
                self.process.wait(ANSWER_SECONDS)
            except (MachineError, subprocess.TimeoutExpired):
                self.process.kill()
        self.process.wait()
        self.control.close()

    def plugged(self) -> set[str]:
        """Ids of the volumes whose devices the guest has."""
        names = [entry["name"] for entry in self.control("qom-list", path="/machine/peripheral")]
        return {name.removeprefix("dev-") for name in names if name.startswith("dev-")}

    def plug(self, volume_id: str, path: Path) -> None:
        self.control("blockdev-add", **_node(volume_id, path))
        try:
            self.control("device_add", **_device(volume_id))
        except MachineError:
            self.control("blockdev-del", **{"node-name": volume_id})
            raise

    def unplug(self, volume_id: str) -> bool:
        """Ask the guest to give the volume back; True once it has and the file is closed."""
        if volume_id in self.plugged():
            # QEMU refuses to ask again while the guest has not answered.
            with contextlib.suppress(MachineError):
                self.control("device_del", id=f"dev-{volume_id}")
            return False
        if volume_id in self._nodes():
            self.control("blockdev-del", **{"node-name": volume_id})
        return True

    def resize(self, volume_id: str, gib: int) -> None:
        self.control("block_resize", **{"node-name": volume_id, "size": gib * GIB})

    def forward(self, public_ip: str | None) -> None:
        """Make SSH reachable at another address; raises MachineError when that is taken."""
        if self.public_ip:
            self._monitor(f"hostfwd_remove net0 {_forward(self.public_ip)}")
            self.public_ip = None
        if public_ip:
            if answer := self._monitor(f"hostfwd_add net0 {_forward(public_ip)}-:22"):
                raise MachineError(answer)
            self.public_ip = public_ip

    def back_up(self, targets: Mapping[str, tuple[str, Path]]) -> None:
        """Start copying volumes, all as they are at this moment: volume id -> (snapshot id, its raw file).

        Only what the qcow2 files themselves hold is copied (sync top); the raw files start as their backing files.
        A full copy would write every zero.
        """
        actions = []
        for volume_id, (snapshot_id, path) in targets.items():
            self.control("blockdev-add", **_node(snapshot_id, path, "raw"))
            job = {"job-id": snapshot_id, "device": volume_id, "target": snapshot_id, "sync": "top"}
            actions.append({"type": "blockdev-backup", "data": job | {"auto-dismiss": False}})
        self.control("transaction", actions=actions)
        self.backups |= {snapshot_id: volume_id for volume_id, (snapshot_id, _unused) in targets.items()}

    def finished_backups(self) -> dict[str, str | None]:
        """Snapshot ids whose copy has ended since the last call, each with its error or None."""
        if not self.backups:
            return {}
        ended: dict[str, str | None] = {}
        for job in self.control("query-jobs"):
            if job["id"] in self.backups and job["status"] == "concluded":
                self.control("job-dismiss", id=job["id"])
                self.control("blockdev-del", **{"node-name": job["id"]})
                del self.backups[job["id"]]
                ended[job["id"]] = job.get("error")
        return ended

    def _nodes(self) -> set[str]:
        return {node["node-name"] for node in self.control("query-named-block-nodes", flat=True)}

    def _monitor(self, line: str) -> str:
        return str(self.control("human-monitor-command", **{"command-line": line})).strip()


class Control:
    """QMP over a Unix socket; one command at a time, from any thread."""

    def __init__(self, path: Path, process: subprocess.Popen[bytes]) -> None:
        self._lock = threading.Lock()
        self._socket = self._connect(path, process)
        self._socket.settimeout(ANSWER_SECONDS)
        self._stream = self._socket.makefile("rwb")
        try:
            self._read()  # the greeting
        except OSError as error:
            raise MachineError(f"QEMU closed its control socket ({error})") from error
        self("qmp_capabilities")

    def __call__(self, command: str, **arguments: Any) -> Any:
        """Run a command and return its answer; raises MachineError."""
        with self._lock:
            try:
                self._stream.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
                self._stream.flush()
                while True:
                    message = self._read()
                    if "return" in message:
                        return message["return"]
                    if "error" in message:
                        raise MachineError(f"{command}: {message['error']['desc']}")
            except (OSError, ValueError) as error:
                raise MachineError(f"{command}: no answer ({error})") from error

    def close(self) -> None:
        self._socket.close()

    def _read(self) -> dict[str, Any]:
        line = self._stream.readline()
        if not line:
            raise MachineError("QEMU closed its control socket")
        message: dict[str, Any] = json.loads(line)
        return message

    @staticmethod
    def _connect(path: Path, process: subprocess.Popen[bytes]) -> socket.socket:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise MachineError(f"QEMU ended with status {process.returncode}")
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(path))
            except OSError:
                connection.close()
                time.sleep(0.05)
            else:
                return connection
        raise MachineError(f"QEMU opened no control socket within {START_SECONDS:.0f} s")


def _forward(public_ip: str) -> str:
    return f"tcp:{public_ip}:{SSH_PORT}"


def _node(name: str, path: Path, driver: str = "qcow2") -> dict[str, Any]:
    # no-flush is cache=unsafe: what the guest wrote survives QEMU's end, only not a power cut of this machine.
    file = {"driver": "file", "filename": str(path), "cache": {"no-flush": True}}
    return {"driver": driver, "node-name": name, "file": file, "discard": "unmap", "detect-zeroes": "unmap"}


def _device(volume_id: str) -> dict[str, Any]:
    # The guest names the disk by this serial, as it names EBS volumes on AWS: without the dash, 20 characters at most.
    serial = volume_id.replace("-", "")[:20]
    return {"driver": "virtio-blk-pci", "id": f"dev-{volume_id}", "drive": volume_id, "serial": serial}
