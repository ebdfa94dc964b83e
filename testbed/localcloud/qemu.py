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
ANSWER_SECONDS = 30.0  # the QMP commands used here return at once; a longer wait means a stuck process
POWERDOWN_EVERY = 3.0  # seconds; a guest that is still booting ignores the first press of the power button


class VirtualMachineError(Exception):
    """A virtual machine did not start or refused a command; the text is one line."""


@dataclass(frozen=True)
class VirtualMachineSpec:
    """The configuration of a virtual machine.

    ``disks`` maps volume ids to qcow2 files, the root volume first. ``accelerator`` holds QEMU's arguments for
    accelerator and CPU. ``console`` and ``log`` are files, the sockets are Unix sockets.
    """

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
        """Return QEMU's command line."""
        # The guest reaches the metadata service on its own link, as on EC2; each connection starts a socat process.
        network = (
            f"user,id=net0,net=169.254.0.0/16,host={HOST_FROM_GUEST},dns=169.254.0.3,dhcpstart=169.254.1.15,"
            f"guestfwd=tcp:169.254.169.254:80-cmd:socat - UNIX-CONNECT:{self.metadata_socket}"
        )
        if self.public_ip:
            network += f",hostfwd={_forward(self.public_ip)}-:22"
        # Serial and UUID begin with ec2: cloud-init recognises EC2 by that (its ds-identify).
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
            arguments += ["-blockdev", json.dumps(_block_node(volume_id, path))]
            device = _disk_device(volume_id) | ({"bootindex": 1} if number == 0 else {})
            arguments += ["-device", json.dumps(device)]
        return arguments


@dataclass
class VirtualMachine:
    """A running virtual machine, created by ``launch``. State that is not stored here is queried from QEMU each time."""

    spec: VirtualMachineSpec
    process: subprocess.Popen[bytes]
    control: Control
    public_ip: str | None
    power_cut_at: float | None = None  # time.monotonic() at which power is cut, while it shuts down
    pressed_at: float = 0.0
    guest_is_up: bool = False  # the guest has requested metadata since its last boot
    backups: dict[str, str] = field(default_factory=dict)  # snapshot id -> volume id, for each copy in progress

    @classmethod
    def launch(cls, spec: VirtualMachineSpec) -> Self:
        """Start QEMU and wait for its control socket; raises VirtualMachineError.

        The kernel kills QEMU when the calling THREAD ends, for whatever reason: call this from a thread that runs as
        long as the region.
        """
        with spec.log.open("ab") as log:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *spec.command()],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            return cls(spec, process, Control(spec.control_socket, process), spec.public_ip)
        except VirtualMachineError as error:
            process.kill()
            process.wait()
            raise VirtualMachineError(
                f"{spec.instance_id}: {error}: {spec.log.read_text(errors='replace')[-500:]}"
            ) from None

    def status(self) -> str:
        """Return QEMU's run state (``running``, ``shutdown`` once the guest is off, ...) or ``gone``."""
        if self.process.poll() is not None:
            return "gone"
        try:
            return str(self.control("query-status")["status"])
        except VirtualMachineError:
            self.process.kill()  # a process that does not respond is useless, and must not keep the disks open
            self.process.wait()
            return "gone"

    def power_down(self, grace: float) -> bool:
        """Press the power button, repeatedly until the guest reacts; return True once it is off or ``grace`` seconds have passed."""
        now = time.monotonic()
        if self.power_cut_at is None:
            self.power_cut_at = now + grace
        if self.status() in ("shutdown", "gone"):
            return True
        if now >= self.power_cut_at:
            return True
        if now - self.pressed_at >= POWERDOWN_EVERY:
            self.pressed_at = now
            self.control("system_powerdown")
        return False

    def pause(self) -> None:
        """Stop the guest's processors; its disks stay open."""
        self.control("stop")

    def reset(self) -> None:
        """Boot the guest again, whether it is running, paused or off."""
        self.power_cut_at = None
        self.pressed_at = 0.0
        self.guest_is_up = False
        self.control("system_reset")
        self.control("cont")

    def kill(self) -> None:
        """Kill the process now; what the guest has written is in the files."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.control.close()

    def quit(self) -> None:
        """Let QEMU close its disks and exit."""
        if self.process.poll() is None:
            try:
                self.control("quit")
                self.process.wait(ANSWER_SECONDS)
            except (VirtualMachineError, subprocess.TimeoutExpired):
                self.process.kill()
        self.process.wait()
        self.control.close()

    def attached_volumes(self) -> set[str]:
        """Return the ids of the volumes whose devices the guest has."""
        names = [entry["name"] for entry in self.control("qom-list", path="/machine/peripheral")]
        return {name.removeprefix("dev-") for name in names if name.startswith("dev-")}

    def attach_volume(self, volume_id: str, path: Path) -> None:
        """Give the guest the volume in file ``path`` as a new device; raises VirtualMachineError."""
        self.control("blockdev-add", **_block_node(volume_id, path))
        try:
            self.control("device_add", **_disk_device(volume_id))
        except VirtualMachineError:
            self.control("blockdev-del", **{"node-name": volume_id})
            raise

    def detach_volume(self, volume_id: str) -> bool:
        """Request the guest to release the volume; return True once it has and the file is closed."""
        if volume_id in self.attached_volumes():
            # QEMU refuses a second request while the first one is pending.
            with contextlib.suppress(VirtualMachineError):
                self.control("device_del", id=f"dev-{volume_id}")
            return False
        if volume_id in self._nodes():
            self.control("blockdev-del", **{"node-name": volume_id})
        return True

    def resize_volume(self, volume_id: str, gib: int) -> None:
        """Grow an attached volume to ``gib`` GiB."""
        self.control("block_resize", **{"node-name": volume_id, "size": gib * GIB})

    def forward_ssh(self, public_ip: str | None) -> None:
        """Make SSH reachable at another address, or at none; raises VirtualMachineError if the address is taken."""
        if self.public_ip:
            self._monitor(f"hostfwd_remove net0 {_forward(self.public_ip)}")
            self.public_ip = None
        if public_ip:
            if answer := self._monitor(f"hostfwd_add net0 {_forward(public_ip)}-:22"):
                raise VirtualMachineError(answer)
            self.public_ip = public_ip

    def start_backups(self, targets: Mapping[str, tuple[str, Path]]) -> None:
        """Start copying volumes, all as they are at this moment.

        ``targets`` maps volume ids to (snapshot id, its raw file). QEMU copies only what the qcow2 files themselves hold
        (sync top) onto raw files that start as copies of their backing files: a full copy would write every zero.
        """
        actions = []
        for volume_id, (snapshot_id, path) in targets.items():
            self.control("blockdev-add", **_block_node(snapshot_id, path, "raw"))
            job = {"job-id": snapshot_id, "device": volume_id, "target": snapshot_id, "sync": "top"}
            actions.append({"type": "blockdev-backup", "data": job | {"auto-dismiss": False}})
        self.control("transaction", actions=actions)
        self.backups |= {snapshot_id: volume_id for volume_id, (snapshot_id, _unused) in targets.items()}

    def finished_backups(self) -> dict[str, str | None]:
        """Return the snapshots whose copy has finished since the last call: snapshot id -> error, None on success."""
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
            raise VirtualMachineError(f"QEMU closed its control socket ({error})") from error
        self("qmp_capabilities")

    def __call__(self, command: str, **arguments: Any) -> Any:
        """Run a command and return its answer; raises VirtualMachineError."""
        with self._lock:
            try:
                self._stream.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
                self._stream.flush()
                while True:
                    message = self._read()
                    if "return" in message:
                        return message["return"]
                    if "error" in message:
                        raise VirtualMachineError(f"{command}: {message['error']['desc']}")
            except (OSError, ValueError) as error:
                raise VirtualMachineError(f"{command}: no answer ({error})") from error

    def close(self) -> None:
        """Close the connection to QEMU."""
        self._socket.close()

    def _read(self) -> dict[str, Any]:
        line = self._stream.readline()
        if not line:
            raise VirtualMachineError("QEMU closed its control socket")
        message: dict[str, Any] = json.loads(line)
        return message

    @staticmethod
    def _connect(path: Path, process: subprocess.Popen[bytes]) -> socket.socket:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise VirtualMachineError(f"QEMU ended with status {process.returncode}")
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(path))
            except OSError:
                connection.close()
                time.sleep(0.05)
            else:
                return connection
        raise VirtualMachineError(f"QEMU opened no control socket within {START_SECONDS:.0f} s")


def _forward(public_ip: str) -> str:
    return f"tcp:{public_ip}:{SSH_PORT}"


def _block_node(name: str, path: Path, driver: str = "qcow2") -> dict[str, Any]:
    # no-flush is cache=unsafe: what the guest wrote survives the end of QEMU, but not a power cut of the host.
    file = {"driver": "file", "filename": str(path), "cache": {"no-flush": True}}
    return {"driver": driver, "node-name": name, "file": file, "discard": "unmap", "detect-zeroes": "unmap"}


def _disk_device(volume_id: str) -> dict[str, Any]:
    # The guest names the disk by this serial, as it names EBS volumes on AWS: no dash, 20 characters at most.
    serial = volume_id.replace("-", "")[:20]
    return {"driver": "virtio-blk-pci", "id": f"dev-{volume_id}", "drive": volume_id, "serial": serial}
