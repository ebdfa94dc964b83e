"""The EBS direct APIs on the files of the region's snapshots."""

from __future__ import annotations

import base64
import hashlib
from typing import Any, cast

import moto.ebs.urls
from moto.core.exceptions import ServiceException
from moto.core.responses import ActionResult
from moto.ebs import models
from moto.ebs.responses import EBSResponse
from moto.ec2.models.elastic_block_store import Snapshot
from typing_extensions import override

from localcloud import hypervisor
from localcloud.moto_storage import Storage
from localcloud.volumes import BLOCK


class EBSError(ServiceException):
    """An error answer, created from (code, message)."""

    __module__ = "moto.ebs.exceptions"  # moto finds the service's error shapes by this name


class EBSSnapshot(models.EBSSnapshot):
    """A snapshot as the direct APIs present it, with the blocks that hold data."""

    def __init__(self, account_id: str, snapshot: Snapshot) -> None:
        super().__init__(account_id, snapshot)
        self.status = snapshot.status
        self.start_time = snapshot.start_time
        self.block_size = BLOCK  # moto: 512


class EBSBackend(models.EBSBackend):
    """Blocks in the files of all snapshots. moto knows only snapshots started here, keeps blocks in memory and accepts any checksum."""

    _url_module = moto.ebs.urls

    def start_snapshot(
        self, volume_size: int, tags: Any, description: str, parent_id: str | None = None
    ) -> EBSSnapshot:
        """Create a pending snapshot, with the content of its parent if there is one."""
        with hypervisor.current.lock:
            if parent_id:
                self._snapshot(parent_id, "completed")
            snapshot = self._ec2.add_snapshot(int(volume_size), description or "")
            snapshot.add_tags({tag["Key"]: tag["Value"] for tag in tags or []})
            hypervisor.current.disks.open_snapshot(snapshot.id, int(volume_size), parent_id)
            return EBSSnapshot(self.account_id, snapshot)

    @override
    def put_snapshot_block(
        self, snapshot_id: str, block_index: Any, block_data: Any, checksum: str | None,
        checksum_algorithm: str | None, data_length: Any,
    ) -> tuple[str | None, str | None]:  # fmt: skip
        """Write a block to a pending snapshot after checking its size, place and SHA256 checksum."""
        snapshot = self._snapshot(snapshot_id, "pending")
        index, data = int(block_index), block_data if isinstance(block_data, bytes) else block_data.read()
        if len(data) != BLOCK or not 0 <= index < snapshot.volume_size * (1 << 30) // BLOCK:
            raise EBSError("ValidationException", f"block {index} of {len(data)} bytes does not fit the snapshot")
        if checksum_algorithm != "SHA256" or checksum != _sha256(data):
            raise EBSError("ValidationException", f"the SHA256 checksum of block {index} is {_sha256(data)}")
        hypervisor.current.disks.write_block(snapshot_id, index, data)
        return checksum, checksum_algorithm

    def complete_snapshot(self, snapshot_id: str) -> str:
        """Make a pending snapshot read-only and completed; return its state."""
        with hypervisor.current.lock:
            snapshot = self._snapshot(snapshot_id, "pending")
            hypervisor.current.disks.seal(snapshot_id)
            snapshot.status = "completed"
        return "completed"

    def get_snapshot_block(self, snapshot_id: str, block_index: Any) -> models.Block:
        """Return one block of a completed snapshot with its checksum."""
        self._snapshot(snapshot_id, "completed")
        return _block(hypervisor.current.disks.read_block(snapshot_id, int(block_index)))

    def list_snapshot_blocks(self, snapshot_id: str) -> EBSSnapshot:
        """Return a completed snapshot with the tokens of the blocks that hold data."""
        snapshot = EBSSnapshot(self.account_id, self._snapshot(snapshot_id, "completed"))
        snapshot.blocks = {index: _token(snapshot_id, index) for index in hypervisor.current.disks.blocks(snapshot_id)}
        return snapshot

    def list_changed_blocks(
        self, first_snapshot_id: str, second_snapshot_id: str
    ) -> tuple[dict[int, tuple[str, str | None]], models.EBSSnapshot]:
        """Return the tokens (first, second) of each block that differs between two snapshots, and the second snapshot."""
        self._snapshot(first_snapshot_id, "completed")
        second = EBSSnapshot(self.account_id, self._snapshot(second_snapshot_id, "completed"))
        changed = hypervisor.current.disks.changed_blocks(first_snapshot_id, second_snapshot_id)
        tokens = {
            i: (_token(first_snapshot_id, i).block_token, _token(second_snapshot_id, i).block_token) for i in changed
        }
        return tokens, second  # type: ignore[return-value]

    @property
    def _ec2(self) -> Storage:
        return cast(Storage, self.ec2_backend)

    def _snapshot(self, snapshot_id: str, state: str) -> Snapshot:
        snapshot = self._ec2.snapshots.get(snapshot_id)
        if snapshot is None:
            raise EBSError("ResourceNotFoundException", f"The snapshot '{snapshot_id}' does not exist.")
        if snapshot.status != state:
            raise EBSError("ValidationException", f"The snapshot '{snapshot_id}' is {snapshot.status}, not {state}.")
        return snapshot


def _token(snapshot_id: str, index: int) -> models.Block:
    block = models.Block(b"", None, None, None)
    block.block_token = hashlib.sha256(f"{snapshot_id}/{index}".encode()).hexdigest()
    return block


def _block(data: bytes) -> models.Block:
    return models.Block(data, _sha256(data), "SHA256", len(data))


def _sha256(data: bytes) -> str:
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def _start_snapshot(self: EBSResponse) -> ActionResult:
    """moto's handler drops ParentSnapshotId."""
    snapshot = self.ebs_backend.start_snapshot(
        volume_size=self._get_param("VolumeSize"),
        tags=self._get_param("Tags"),
        description=self._get_param("Description"),
        parent_id=self._get_param("ParentSnapshotId"),
    )  # type: ignore[call-arg]
    return ActionResult(
        {
            "SnapshotId": snapshot.snapshot_id, "OwnerId": self.current_account, "Status": "pending",
            "StartTime": snapshot.start_time, "VolumeSize": snapshot.volume_size, "BlockSize": snapshot.block_size,
            "Tags": snapshot.tags, "Description": snapshot.description,
            "ParentSnapshotId": self._get_param("ParentSnapshotId"),
        }
    )  # fmt: skip


def install() -> None:
    """Replace moto's backend and handler by those of this module."""
    models.ebs_backends.backend = EBSBackend
    EBSResponse.start_snapshot = _start_snapshot  # type: ignore[method-assign]
