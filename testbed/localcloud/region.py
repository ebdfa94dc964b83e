"""The virtual machines of the region: one thread reconciles them with the records of the API."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from moto.ec2.models import ec2_backends
from moto.ec2.models.elastic_block_store import Snapshot, Volume

from localcloud import metadata
from localcloud.hypervisor import VolumeAndSnapshot
from localcloud.identity import Identities
from localcloud.moto_hooks import EC2Backend, Instance
from localcloud.qemu import VirtualMachine, VirtualMachineError, VirtualMachineSpec
from localcloud.settings import ACCOUNT, NOTICE_SECONDS, SSH_PORT, Settings
from localcloud.volumes import Disks

TICK = 0.5  # seconds between two reconciliations unless something wakes the thread; the precision of all times here
CONSOLE_BYTES = 65536  # what GetConsoleOutput returns at most (EC2 API reference)
SPOT_INTERRUPTION = ("Server.SpotInstanceTermination", "Spot instance termination")
GUEST_SHUTDOWN = ("Client.InstanceInitiatedShutdown", "Instance initiated shutdown")
INTERNAL_ERROR = ("Server.InternalError", "Internal error")

log = logging.getLogger(__name__)


@dataclass
class InterruptionNotice:
    """An announced spot interruption: what the metadata service shows, and when it happens (time.monotonic())."""

    action: Mapping[str, str]
    interrupted_at: float


class Region:
    """The ``Hypervisor`` of the API: virtual machines, their metadata services and their disks.

    ``sockets`` is a folder with a short path, ``network`` the third number of the public addresses 127.100.n.x, and
    ``accelerator`` holds QEMU's arguments for accelerator and CPU.
    """

    def __init__(self, settings: Settings, sockets: Path, network: int, accelerator: Sequence[str]) -> None:
        self.lock: AbstractContextManager[bool] = threading.RLock()
        self.disks = Disks(settings.state)
        self._settings = settings
        self._sockets = sockets
        self._accelerator = accelerator
        self._addresses = (f"127.100.{network}.{1 + number % 254}" for number in count())
        self._machines: dict[str, VirtualMachine] = {}
        self._services: dict[str, metadata.Server] = {}
        self._snapshots: dict[str, Snapshot] = {}
        self._copying: list[str] = []
        self._at_reboot: dict[str, Sequence[VolumeAndSnapshot]] = {}
        self._interruptions: dict[str, InterruptionNotice] = {}
        self._rebalance_notices: dict[str, str] = {}
        self._identities = Identities()
        self._woken = threading.Event()
        self._stopped = False

    # The interface Hypervisor

    def wake(self) -> None:
        """Wake the reconciling thread."""
        self._woken.set()

    def free_public_address(self) -> str:
        """Return an address of the host's loopback that no instance uses and nothing listens at."""
        with self.lock:
            used = {nic.public_ip for backend in self._backends() for nic in list(backend.enis.values())}
            return next(address for address in self._addresses if address not in used and _is_free(address))

    def has_virtual_machine(self, instance_id: str) -> bool:
        """Whether the instance has a virtual machine at the moment."""
        return instance_id in self._machines

    def guest_is_up(self, instance_id: str) -> bool:
        """Whether the guest has requested metadata since its last boot."""
        machine = self._machines.get(instance_id)
        return machine is not None and machine.guest_is_up

    def console(self, instance_id: str) -> bytes:
        """Return the last 64 KiB, at most, of the instance's serial console; empty before its first start."""
        path = self._folder(instance_id) / "console.log"
        return path.read_bytes()[-CONSOLE_BYTES:] if path.exists() else b""

    def resize_volume(self, volume: Volume) -> None:
        """Grow the volume's file to the size in the records, attached or not."""
        if machine := self._machine_of(volume):
            machine.resize_volume(volume.id, volume.size)
        else:
            self.disks.resize_volume(volume.id, volume.size)

    def discard_volume(self, volume: Volume) -> None:
        """Remove the volume's file, unless a snapshot is being copied from it: then that copy removes it at its end."""
        if volume.id not in self._copying:
            self.disks.delete_volume(volume.id)

    def prepare_snapshots(self, pairs: Sequence[VolumeAndSnapshot]) -> None:
        """Create the files for snapshots of volumes that a virtual machine has, which may take seconds. Needs no lock."""
        for volume, snapshot in pairs:
            if volume.attachment and self.has_virtual_machine(volume.attachment.instance_id):
                self.disks.open_backup(volume.id, snapshot.id, volume.size)

    def take_snapshots(self, pairs: Sequence[VolumeAndSnapshot]) -> None:
        """Copy the volumes into their pending snapshots: QEMU copies attached ones, a thread each of the others."""
        live: dict[str, dict[str, tuple[str, Path]]] = {}
        for volume, snapshot in pairs:
            if self._machine_of(volume) and volume.attachment:
                target = self.disks.snapshot(snapshot.id)
                if not target.exists():  # the virtual machine came up after prepare_snapshots
                    self.disks.open_backup(volume.id, snapshot.id, volume.size)
                live.setdefault(volume.attachment.instance_id, {})[volume.id] = (snapshot.id, target)
                self._snapshots[snapshot.id] = snapshot
            else:
                self._copying.append(volume.id)
                threading.Thread(target=self._copy, args=(volume, snapshot), daemon=True).start()
        for instance_id, targets in live.items():
            try:
                self._machines[instance_id].start_backups(targets)
            except VirtualMachineError:
                log.exception("%s", instance_id)
                for snapshot_id, _unused in targets.values():
                    self._snapshots.pop(snapshot_id).status = "error"

    def _copy(self, volume: Volume, snapshot: Snapshot) -> None:
        """Copy a volume that no virtual machine has open; none opens it before the copy has finished."""
        try:
            self.disks.snapshot_volume(volume.id, snapshot.id)
            snapshot.status = "completed"
        except OSError:
            log.exception("%s", snapshot.id)
            snapshot.status = "error"
        with self.lock:
            self._copying.remove(volume.id)
            if volume.id not in volume.ec2_backend.volumes:
                self.discard_volume(volume)
        self.wake()

    def take_snapshots_at_reboot(self, instance: Any, pairs: Sequence[VolumeAndSnapshot]) -> None:
        """Reboot the instance and copy its volumes while it is down."""
        self._at_reboot[instance.id] = [*self._at_reboot.get(instance.id, ()), *pairs]
        instance.reboot()

    # What the command line offers in addition to the API

    def interrupt(self, instance_id: str, seconds: float) -> str:
        """Announce the interruption of a spot instance and terminate it after ``seconds``; return the time, ISO 8601 UTC."""
        if not 0 <= seconds <= NOTICE_SECONDS:
            raise ValueError(f"seconds: found {seconds}, allowed 0 to {NOTICE_SECONDS}")
        instance = self._running(instance_id)
        if instance.lifecycle != "spot":
            raise ValueError(f"{instance_id}: found an on-demand instance, only spot instances are interrupted")
        when = (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._interruptions[instance_id] = InterruptionNotice(
            {"action": "terminate", "time": when}, time.monotonic() + seconds
        )
        return when

    def rebalance(self, instance_id: str) -> str:
        """Send the instance a rebalance recommendation; return the time of the notice, ISO 8601 UTC."""
        self._running(instance_id)
        self._rebalance_notices[instance_id] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return self._rebalance_notices[instance_id]

    def _running(self, instance_id: str) -> Instance:
        for _unused, instance in self._instances():
            if instance.id == instance_id and instance.state == "running":
                return instance
        raise ValueError(f"{instance_id}: found no running instance of this id")

    # The reconciling thread

    def run(self) -> None:
        """Reconcile until ``stop`` is called; the virtual machines end with the thread that runs this."""
        while not self._stopped:
            with self.lock:
                for backend, instance in self._instances():
                    self._log_failures(instance.id, partial(self._reconcile, backend, instance))
                self._log_failures("images", self._reconcile_images)
            self._woken.wait(TICK)
            self._woken.clear()
        with self.lock:
            for instance_id in list(self._machines):
                self._machines[instance_id].kill()
                self._forget(instance_id)

    def stop(self) -> None:
        """Make ``run`` kill all virtual machines and return."""
        self._stopped = True
        self._woken.set()

    @staticmethod
    def _log_failures(name: str, action: Callable[[], None]) -> None:
        """Run ``action`` and log what it raises: a fault of one instance must not end the thread, and all instances with it."""
        try:
            action()
        except Exception:
            log.exception("%s", name)

    def _reconcile(self, backend: EC2Backend, instance: Instance) -> None:
        machine = self._machines.get(instance.id)
        if machine:
            self._finish_backups(machine)
        if instance.state == "pending":
            self._launch(backend, instance)
        elif instance.state == "running" and machine:
            self._reconcile_running(backend, instance, machine)
        elif instance.state in ("stopping", "shutting-down"):
            self._reconcile_ending(backend, instance, machine)

    def _launch(self, backend: EC2Backend, instance: Instance) -> None:
        if any(volume.id in self._copying for volume in self._volumes(backend, instance)):
            return
        folder = self._folder(instance.id)
        folder.mkdir(parents=True, exist_ok=True)
        devices = sorted(instance.get_block_device_mapping, key=lambda pair: pair[0] != instance.root_device_name)
        vcpus, memory = _capacity(backend, instance.instance_type)
        spec = VirtualMachineSpec(
            instance_id=instance.id,
            product=instance.instance_type,
            vcpus=min(vcpus, self._settings.vcpus),
            memory_mib=min(memory, self._settings.memory_mib),
            mac=instance.nics[0].mac_address,
            accelerator=self._accelerator,
            disks={block.volume_id: self.disks.volume(block.volume_id) for _unused, block in devices},
            control_socket=self._sockets / f"{instance.id}.qmp",
            metadata_socket=self._sockets / f"{instance.id}.imds",
            console=folder / "console.log",
            log=folder / "qemu.log",
            public_ip=instance.public_ip,
        )
        try:
            self._services[instance.id] = metadata.serve(spec.metadata_socket, lambda: self._view(backend, instance))
            self._machines[instance.id] = VirtualMachine.launch(spec)
        except (VirtualMachineError, OSError) as error:
            log.error("%s", error)  # noqa: TRY400 - the message is one line
            self._forget(instance.id)
            instance.set_state("shutting-down", (INTERNAL_ERROR[0], "Internal error on launch"))
            return
        for volume in self._volumes(backend, instance):
            if volume.attachment:
                volume.attachment.status = "attached"
        instance.set_state("running")
        log.info("%s: running, ssh at %s", instance.id, instance.public_ip)

    def _reconcile_running(self, backend: EC2Backend, instance: Instance, machine: VirtualMachine) -> None:
        status = machine.status()
        notice = self._interruptions.get(instance.id)
        if status == "gone":
            self._forget(instance.id)
            instance.set_state("stopping", INTERNAL_ERROR)
        elif instance.reboot_requested:
            if machine.power_down(self._settings.stop_seconds):
                self._reboot(instance, machine)
        elif status == "shutdown":
            ends = instance.instance_initiated_shutdown_behavior == "terminate"
            instance.set_state("shutting-down" if ends else "stopping", GUEST_SHUTDOWN)
        elif notice and time.monotonic() >= notice.interrupted_at:
            instance.set_state("shutting-down", SPOT_INTERRUPTION)
        else:
            self._reconcile_devices(backend, instance, machine)
            if instance.public_ip != machine.public_ip:  # an elastic address was associated or released
                machine.forward_ssh(instance.public_ip)
            return
        self.wake()

    def _reboot(self, instance: Instance, machine: VirtualMachine) -> None:
        if pairs := self._at_reboot.pop(instance.id, None):
            self.take_snapshots(pairs)
        machine.reset()
        instance.reboot_requested = False

    def _reconcile_ending(self, backend: EC2Backend, instance: Instance, machine: VirtualMachine | None) -> None:
        stops = instance.state == "stopping"
        if machine:
            if not machine.power_down(self._settings.stop_seconds if stops else self._settings.terminate_seconds):
                return
            if pairs := self._at_reboot.pop(instance.id, None):
                self.take_snapshots(pairs)
            if machine.backups and machine.status() != "gone":
                machine.pause()  # finish the snapshots in progress first
                return
            machine.quit()
            self._forget(instance.id)
            for volume in self._volumes(backend, instance):
                if volume.attachment and volume.attachment.status == "detaching":
                    backend.finish_detach(volume)
        if stops:
            instance.finish_stop()
        else:
            instance.finish_terminate()
        instance.reboot_requested = False
        log.info("%s: %s (%s)", instance.id, instance.state, instance.state_reason.message)

    def _forget(self, instance_id: str) -> None:
        """Forget a virtual machine that has ended, with its sockets and notices."""
        machine = self._machines.pop(instance_id, None)
        for snapshot_id in machine.backups if machine else ():
            self._snapshots.pop(snapshot_id).status = "error"
        if service := self._services.pop(instance_id, None):
            service.close()
        self._interruptions.pop(instance_id, None)
        self._rebalance_notices.pop(instance_id, None)
        (self._sockets / f"{instance_id}.qmp").unlink(missing_ok=True)

    def _finish_backups(self, machine: VirtualMachine) -> None:
        if machine.status() == "gone":
            return
        for snapshot_id, error in machine.finished_backups().items():
            snapshot = self._snapshots.pop(snapshot_id)
            if error:
                log.error("%s: %s", snapshot_id, error)
                snapshot.status = "error"
            elif self.disks.snapshot(snapshot_id).exists():  # it may have been deleted in the meantime
                self.disks.seal(snapshot_id)
                snapshot.status = "completed"

    def _reconcile_devices(self, backend: EC2Backend, instance: Instance, machine: VirtualMachine) -> None:
        moving = [volume for volume in self._volumes(backend, instance) if volume.attachment.status != "attached"]  # type: ignore[union-attr]
        for volume in moving:
            if volume.id in self._copying:
                continue
            if volume.attachment and volume.attachment.status == "attaching":
                if volume.id not in machine.attached_volumes():
                    machine.attach_volume(volume.id, self.disks.volume(volume.id))
                volume.attachment.status = "attached"
            elif machine.detach_volume(volume.id):
                backend.finish_detach(volume)

    def _reconcile_images(self) -> None:
        for backend in self._backends():
            for image in list(backend.amis.values()):
                if image.state == "pending":
                    states = {backend.snapshots[key].status for key in image.snapshot_ids if key in backend.snapshots}  # type: ignore[attr-defined]
                    if states <= {"completed"}:
                        image.state = "available"
                    elif "error" in states:
                        image.state = "failed"

    def _view(self, backend: EC2Backend, instance: Instance) -> metadata.InstanceView:
        if machine := self._machines.get(instance.id):
            machine.guest_is_up = True
        notice = self._interruptions.get(instance.id)
        return self._identities.view(
            backend, instance, notice.action if notice else None, self._rebalance_notices.get(instance.id)
        )

    # Helpers

    def _folder(self, instance_id: str) -> Path:
        return self._settings.state / "instances" / instance_id

    def _machine_of(self, volume: Volume) -> VirtualMachine | None:
        """Return the virtual machine that has the volume's file open, None if there is none."""
        machine = self._machines.get(volume.attachment.instance_id) if volume.attachment else None
        return machine if machine and machine.status() != "gone" and volume.id in machine.attached_volumes() else None

    @staticmethod
    def _volumes(backend: EC2Backend, instance: Instance) -> list[Volume]:
        return [backend.volumes[block.volume_id] for _unused, block in instance.get_block_device_mapping]

    @staticmethod
    def _backends() -> list[EC2Backend]:
        return list(ec2_backends[ACCOUNT].values())  # type: ignore[arg-type]

    def _instances(self) -> Iterator[tuple[EC2Backend, Instance]]:
        for backend in self._backends():
            for instance in backend.all_instances():
                yield backend, instance  # type: ignore[misc]


def _capacity(backend: EC2Backend, instance_type: str) -> tuple[int, int]:
    """Return vCPUs and MiB of memory of an instance type."""
    found = backend.describe_instance_types([instance_type])[0]
    return int(found["VCpuInfo"]["DefaultVCpus"]), int(found["MemoryInfo"]["SizeInMiB"])


def _is_free(address: str) -> bool:
    """Whether the SSH port of ``address`` is free: a virtual machine left over from elsewhere may listen there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ignore connections that are closing
        try:
            probe.bind((address, SSH_PORT))
        except OSError:
            return False
    return True
