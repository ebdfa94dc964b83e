"""What the API of the region needs from the machines behind it, and the one world in which this process runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from moto.ec2.models.elastic_block_store import Snapshot, Volume

from localcloud.volumes import Disks

Pair = tuple[Volume, Snapshot]


class World(Protocol):
    """What the API needs from the machines' side. All calls are made with ``lock`` held."""

    disks: Disks

    @property
    def lock(self) -> AbstractContextManager[bool]:
        """Reentrant; held while books or machines change."""

    def wake(self) -> None:
        """Something has changed: look soon."""

    def public_address(self) -> str:
        """An address of this machine's loopback that no other instance has."""

    def has_machine(self, instance_id: str) -> bool: ...

    def guest_seen(self, instance_id: str) -> bool:
        """Whether the guest has come up as far as asking for its metadata."""

    def console(self, instance_id: str) -> bytes:
        """The end of what the instance wrote to its serial console, 64 KiB at most."""

    def resize(self, volume: Volume) -> None: ...

    def discard(self, volume: Volume) -> None:
        """The volume is deleted: remove its file, at the latest when nothing copies it any more."""

    def prepare(self, pairs: Sequence[Pair]) -> None:
        """What may take seconds before ``take``; WITHOUT the lock."""

    def take(self, pairs: Sequence[Pair]) -> None:
        """Copy volumes, all as they are now, into their pending snapshots."""

    def take_at_reboot(self, instance: Any, pairs: Sequence[Pair]) -> None:
        """Reboot the instance and copy its volumes while it is down."""


current: World
_thread = threading.local()


@contextmanager
def books() -> Iterator[None]:
    """Within it this thread's volumes and snapshots exist in moto's books only, without a file."""
    before, _thread.books_only = books_only(), True
    try:
        yield
    finally:
        _thread.books_only = before


def books_only() -> bool:
    return bool(getattr(_thread, "books_only", False))


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are not None."""
    return {key: value for key, value in values.items() if value is not None}
