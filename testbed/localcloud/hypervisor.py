"""The interface between the region's API and its virtual machines, and the implementation that this process uses."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from moto.ec2.models.elastic_block_store import Snapshot, Volume

from localcloud.volumes import Disks

VolumeAndSnapshot = tuple[Volume, Snapshot]


class Hypervisor(Protocol):
    """What the API needs from the virtual machines. The caller holds ``lock`` during every call."""

    disks: Disks

    @property
    def lock(self) -> AbstractContextManager[bool]:
        """Reentrant lock, held while records or virtual machines change."""

    def wake(self) -> None:
        """Ask for a reconciliation soon, because something has changed."""

    def free_public_address(self) -> str:
        """Return an address of the host's loopback that no other instance uses."""

    def has_virtual_machine(self, instance_id: str) -> bool:
        """Whether the instance has a virtual machine at the moment."""

    def guest_is_up(self, instance_id: str) -> bool:
        """Whether the guest has booted far enough to request its metadata."""

    def console(self, instance_id: str) -> bytes:
        """Return the last 64 KiB, at most, that the instance wrote to its serial console."""

    def resize_volume(self, volume: Volume) -> None:
        """Grow the volume's file to the size in the records, attached or not."""

    def discard_volume(self, volume: Volume) -> None:
        """Remove the file of a deleted volume, once no snapshot is being copied from it."""

    def prepare_snapshots(self, pairs: Sequence[VolumeAndSnapshot]) -> None:
        """Do the slow part of ``take_snapshots`` in advance, which may take seconds. Called WITHOUT the lock."""

    def take_snapshots(self, pairs: Sequence[VolumeAndSnapshot]) -> None:
        """Copy all volumes, as they are at this moment, into their pending snapshots."""

    def take_snapshots_at_reboot(self, instance: Any, pairs: Sequence[VolumeAndSnapshot]) -> None:
        """Reboot the instance and copy its volumes while it is down."""


current: Hypervisor
_thread = threading.local()


@contextmanager
def records_only() -> Iterator[None]:
    """Create the volumes and snapshots of this thread in moto's records only, without files, within the block."""
    before, _thread.records_only = is_records_only(), True
    try:
        yield
    finally:
        _thread.records_only = before


def is_records_only() -> bool:
    """Whether this thread is within a ``records_only`` block."""
    return bool(getattr(_thread, "records_only", False))


def without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the items whose value is not None."""
    return {key: value for key, value in values.items() if value is not None}
