"""moto's volumes, snapshots and images, backed by files.

moto keeps the records and answers the API, but its volumes, snapshots and images hold no data. The docstring of each
method says how it differs from moto's.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from moto.ec2 import models as ec2_models
from moto.ec2.exceptions import EC2ClientError, InvalidAMIIdError
from moto.ec2.models import amis, elastic_block_store
from moto.ec2.models.elastic_block_store import Snapshot, Volume, VolumeAttachment
from moto.ec2.utils import random_ami_id

from localcloud import hypervisor
from localcloud.hypervisor import VolumeAndSnapshot


class Ami(amis.Ami):
    """An image whose devices are real snapshots."""

    mappings: Sequence[Mapping[str, Any]] = ()
    ena_support = True
    deprecation_time: str | None = None
    deregistration_protection = "disabled"

    @property
    def block_device_mappings(self) -> list[dict[str, Any]]:
        """The devices of the image, as the API lists them."""
        return [dict(mapping) for mapping in self.mappings]

    @property
    def snapshot_ids(self) -> list[str]:
        """Ids of the snapshots that the image consists of, root device first."""
        return [mapping["Ebs"]["SnapshotId"] for mapping in self.mappings if mapping.get("Ebs", {}).get("SnapshotId")]


class PendingSnapshot(elastic_block_store.Snapshot):
    """A snapshot that stays pending until its data are copied."""

    @property
    def progress(self) -> str:
        """100% when completed, 0% before."""
        return "100%" if self.status == "completed" else "0%"  # nothing queries QEMU for the progress in between


class Storage(ec2_models.EC2Backend):
    """Volumes, snapshots and images of one region."""

    # Volumes

    def create_volume(
        self, size: Any, zone_name: str, snapshot_id: str | None = None, *args: Any, **kwargs: Any
    ) -> Volume:
        """Create a volume with a file. moto's volumes hold nothing and may be smaller than their snapshot."""
        with hypervisor.current.lock:
            if snapshot_id:
                least = self._completed_snapshot(snapshot_id).volume_size
                if size is not None and int(size) < least:
                    message = f"The size of a volume must be at least that of snapshot '{snapshot_id}': {least} GiB"
                    raise EC2ClientError("InvalidParameterValue", message)
            volume = super().create_volume(size, zone_name, snapshot_id, *args, **kwargs)
            volume.size = int(volume.size)
            if not hypervisor.is_records_only():
                hypervisor.current.disks.create_volume(volume.id, volume.size, snapshot_id)
            return volume

    def delete_volume(self, volume_id: str) -> Volume:
        """Delete a volume and its file."""
        with hypervisor.current.lock:
            volume = super().delete_volume(volume_id)
            hypervisor.current.discard_volume(volume)
            return volume

    def modify_volume(self, volume_id: str, target_size: Any = None, *args: Any, **kwargs: Any) -> Volume:
        """Change a volume and grow its file. moto shrinks volumes too."""
        with hypervisor.current.lock:
            size = int(target_size) if target_size else None
            if size and size < self.get_volume(volume_id).size:
                raise EC2ClientError("InvalidParameterValue", "New size cannot be smaller than existing size")
            volume = super().modify_volume(volume_id, size, *args, **kwargs)
            if size:
                hypervisor.current.resize_volume(volume)
            return volume

    def attach_volume(
        self, volume_id: str, instance_id: str, device_path: str, delete_on_termination: bool = False
    ) -> VolumeAttachment | None:
        """Attach a volume after checking both. moto attaches any volume to any instance, even twice."""
        with hypervisor.current.lock:
            volume, instance = self.get_volume(volume_id), self.get_instance(instance_id)
            if volume.attachment:
                raise EC2ClientError("VolumeInUse", f"{volume_id} is already attached to an instance")
            if instance.state not in ("pending", "running", "stopped"):
                raise EC2ClientError("IncorrectState", f"Instance '{instance_id}' is not 'running'.")
            if volume.availability_zone != instance.availability_zone:
                message = f"The volume '{volume_id}' is not in the same availability zone as instance '{instance_id}'"
                raise EC2ClientError("InvalidVolume.ZoneMismatch", message)
            if device_path in instance.block_device_mapping:
                message = (
                    f"Invalid value '{device_path}' for unixDevice. Attachment point {device_path} is already in use"
                )
                raise EC2ClientError("InvalidParameterValue", message)
            attachment = super().attach_volume(volume_id, instance_id, device_path, delete_on_termination)
            if attachment and hypervisor.current.has_virtual_machine(instance_id):
                attachment.status = "attaching"
                hypervisor.current.wake()
            return attachment

    def detach_volume(self, volume_id: str, instance_id: str | None, device_path: str) -> VolumeAttachment:
        """Detach a volume once the guest releases it. moto requires the instance id and detaches at once."""
        with hypervisor.current.lock:
            attachment = self.get_volume(volume_id).attachment
            if not attachment:
                raise EC2ClientError("IncorrectState", f"Volume '{volume_id}' is in the 'available' state.")
            instance = attachment.instance
            if not hypervisor.current.has_virtual_machine(instance.id):
                return super().detach_volume(volume_id, instance_id or instance.id, device_path)
            if attachment.device == instance.root_device_name:
                message = f"Unable to detach root volume '{volume_id}' from instance '{instance.id}'"
                raise EC2ClientError("OperationNotPermitted", message)
            attachment.status = "detaching"
            hypervisor.current.wake()
            return attachment

    def finish_detach(self, volume: Volume) -> None:
        """Record that the guest has released the volume."""
        if volume.attachment:
            super().detach_volume(volume.id, volume.attachment.instance.id, volume.attachment.device)

    # Snapshots

    def create_snapshot(
        self, volume_id: str, description: str, owner_id: str | None = None, from_ami: str | None = None
    ) -> Snapshot:
        """Start copying a volume into a snapshot, which is pending until the copy is complete."""
        with hypervisor.current.lock:
            volume = self.get_volume(volume_id)
            snapshot = self._open_snapshot(volume, description, owner_id, from_ami)
        if not hypervisor.is_records_only():
            self._take_snapshots([(volume, snapshot)])
        return snapshot

    def create_snapshots(self, instance_spec: dict[str, Any], description: str, tags: dict[str, str]) -> list[Snapshot]:
        """Start copying all volumes of an instance as they are at one moment."""
        # moto creates one after the other, but all must show the same moment.
        with hypervisor.current.lock, hypervisor.records_only():
            snapshots = super().create_snapshots(instance_spec, description, tags)
        self._take_snapshots([(self.volumes[snapshot.volume.id], snapshot) for snapshot in snapshots])
        return snapshots

    @staticmethod
    def _take_snapshots(pairs: Sequence[VolumeAndSnapshot]) -> None:
        hypervisor.current.prepare_snapshots(pairs)
        with hypervisor.current.lock:
            hypervisor.current.take_snapshots(pairs)

    def _open_snapshot(self, volume: Volume, description: str, owner: str | None, from_ami: str | None) -> Snapshot:
        snapshot = super().create_snapshot(volume.id, description, owner, from_ami)
        # moto's snapshot would grow with its volume.
        snapshot.volume = copy.copy(volume)
        snapshot.status = "pending"
        return snapshot

    def _completed_snapshot(self, snapshot_id: str) -> Snapshot:
        snapshot = self.get_snapshot(snapshot_id)
        if snapshot.status != "completed":
            message = f"Snapshot is in invalid state - {snapshot.status}: '{snapshot_id}'"
            raise EC2ClientError("IncorrectState", message)
        return snapshot

    def add_snapshot(self, gib: int, description: str) -> Snapshot:
        """Create a pending snapshot of ``gib`` GiB that comes from no volume."""
        with hypervisor.records_only():
            volume = self.create_volume(gib, f"{self.region_name}a")
            snapshot = self.create_snapshot(volume.id, description)
            self.delete_volume(volume.id)
        return snapshot

    def copy_snapshot(self, source_snapshot_id: str, source_region: str, *args: Any, **kwargs: Any) -> Snapshot:
        """Copy a completed snapshot, of this or another region, with its data."""
        with hypervisor.current.lock:
            source = ec2_models.ec2_backends[self.account_id][source_region]
            original = source._completed_snapshot(source_snapshot_id)  # type: ignore[attr-defined]
            snapshot = super().copy_snapshot(source_snapshot_id, source_region, *args, **kwargs)
            snapshot.volume = original.volume
            hypervisor.current.disks.copy_snapshot(source_snapshot_id, snapshot.id)
            return snapshot

    def delete_snapshot(self, snapshot_id: str) -> Snapshot:
        """Delete a snapshot that no image uses. moto does not know which snapshots an image was registered from."""
        with hypervisor.current.lock:
            for image in self.amis.values():
                if snapshot_id in getattr(image, "snapshot_ids", []):
                    message = f"The snapshot {snapshot_id} is currently in use by {image.id}"
                    raise EC2ClientError("InvalidSnapshot.InUse", message)
            snapshot = super().delete_snapshot(snapshot_id)
            hypervisor.current.disks.delete_snapshot(snapshot_id)
            return snapshot

    # Images

    def create_image(
        self, instance_id: str, name: str, description: str, tag_specifications: Any, *,
        no_reboot: bool = True, mappings: Sequence[Mapping[str, Any]] = (),
    ) -> amis.Ami:  # fmt: skip
        """Create an image of all volumes of an instance. moto's image has one empty snapshot, and moto never reboots."""
        with hypervisor.current.lock:
            instance = self.get_instance(instance_id)
            if instance.state not in ("running", "stopped"):
                raise EC2ClientError("IncorrectState", f"The instance '{instance_id}' is {instance.state}")
            self._check_name_is_free(name)
            changes = {mapping["DeviceName"]: mapping for mapping in mappings}
            pairs: list[VolumeAndSnapshot] = []
            devices = []
            for device, block in instance.get_block_device_mapping:
                change = changes.pop(device, {})
                if change.get("NoDevice") is not None:
                    continue
                volume = self.volumes[block.volume_id]
                snapshot = self._open_snapshot(volume, f"Created by CreateImage({instance_id})", None, None)
                pairs.append((volume, snapshot))
                ebs = self._ebs_mapping(snapshot, block.delete_on_termination, volume.volume_type)
                devices.append({"DeviceName": device, "Ebs": ebs | hypervisor.without_none(change.get("Ebs", {}))})
            devices += [dict(mapping) for mapping in changes.values() if mapping.get("NoDevice") is None]
            image = self.add_image(
                name, description, devices, instance.root_device_name, instance=instance, state="pending"
            )
            for specification in tag_specifications:
                tags = {tag["Key"]: tag["Value"] for tag in specification["Tags"]}
                owners = (
                    [image] if specification["ResourceType"] == "image" else [snapshot for _unused, snapshot in pairs]
                )
                for owner in owners:
                    owner.add_tags(tags)
            if instance.state == "running" and not no_reboot:
                hypervisor.current.take_snapshots_at_reboot(instance, pairs)
            else:
                hypervisor.current.take_snapshots(pairs)
            hypervisor.current.wake()
            return image

    def register_image(
        self, name: str | None = None, description: str | None = None, mappings: Sequence[Mapping[str, Any]] = (),
        root_device: str = "/dev/sda1", **attributes: Any,
    ) -> amis.Ami:  # fmt: skip
        """Register snapshots as an image. moto ignores everything but name and description."""
        with hypervisor.current.lock:
            self._check_name_is_free(name)
            devices = []
            for mapping in mappings:
                ebs = dict(mapping.get("Ebs", {}))
                if ebs.get("SnapshotId"):
                    snapshot = self._completed_snapshot(ebs["SnapshotId"])
                    requested = hypervisor.without_none(ebs)
                    ebs = self._ebs_mapping(snapshot, mapping["DeviceName"] == root_device, "gp3") | requested
                    ebs["VolumeSize"] = self._volume_size(ebs)
                devices.append({"DeviceName": mapping["DeviceName"], "Ebs": ebs})
            roots = [device for device in devices if device["DeviceName"] == root_device]
            if not roots or not roots[0]["Ebs"].get("SnapshotId"):
                message = f"The root device {root_device} has no snapshot in the block device mappings"
                raise EC2ClientError("InvalidBlockDeviceMapping", message)
            return self.add_image(name, description, devices, root_device, **attributes)

    def copy_image(
        self, source_image_id: str, source_region: str, name: str | None = None, description: str | None = None
    ) -> amis.Ami:
        """Copy an image with its snapshots. moto's copy has another empty snapshot."""
        with hypervisor.current.lock:
            source = ec2_models.ec2_backends[self.account_id][source_region]
            image = source._usable_image(source_image_id)  # type: ignore[attr-defined]
            self._check_name_is_free(name)
            devices = copy.deepcopy(image.block_device_mappings)
            for device in devices:
                if old := device.get("Ebs", {}).get("SnapshotId"):
                    text = f"Copied for {source_image_id} from {source_region}"
                    device["Ebs"]["SnapshotId"] = self.copy_snapshot(old, source_region, text, None).id
            attributes: dict[str, Any] = {key: getattr(image, key, None) for key in ("imds_support", "ena_support")}
            name, description = name or image.name, description or image.description
            return self.add_image(name, description, devices, image.root_device_name, **attributes)

    def add_image(
        self, name: str | None, description: str | None, devices: Sequence[Mapping[str, Any]], root_device: str,
        *, instance: Any = None, state: str = "available", owner_id: str | None = None, public: bool = False,
        architecture: str | None = None, image_id: str | None = None, **attributes: Any,
    ) -> Ami:  # fmt: skip
        """Add an image of completed or pending snapshots to the records."""
        with hypervisor.records_only():
            image = Ami(
                self, image_id or random_ami_id(), instance=instance, name=name, description=description, owner_id=owner_id,
                public=public, virtualization_type="hvm", architecture=architecture or "x86_64", state=state,
                hypervisor="xen", root_device_type="ebs", root_device_name=root_device, boot_mode="legacy-bios",
            )  # fmt: skip
        self.snapshots.pop(image.ebs_snapshot.id)  # moto creates an empty one of 15 GiB
        image.image_location = f"{image.owner_id}/{name}"
        image.mappings = sorted(devices, key=lambda device: device["DeviceName"] != root_device)
        image.ebs_snapshot = self.snapshots[image.snapshot_ids[0]]
        for key, value in hypervisor.without_none(attributes).items():
            setattr(image, key, value)
        self.amis[image.id] = image
        return image

    def deregister_image(self, ami_id: str) -> None:
        """Deregister an image that is not protected. moto knows no protection."""
        with hypervisor.current.lock:
            if getattr(self.amis.get(ami_id), "deregistration_protection", "disabled") != "disabled":
                raise EC2ClientError("OperationNotPermitted", f"Deregistration protection is enabled for {ami_id}")
            super().deregister_image(ami_id)

    def _check_name_is_free(self, name: str | None) -> None:
        # moto accepts a second image of the same name.
        for image in self.amis.values():
            if image.name == name and image.owner_id == self.account_id:
                raise EC2ClientError("InvalidAMIName.Duplicate", f"AMI name {name} is already in use by AMI {image.id}")

    @staticmethod
    def _ebs_mapping(snapshot: Snapshot, delete: bool, volume_type: str) -> dict[str, Any]:
        return {
            "SnapshotId": snapshot.id, "VolumeSize": snapshot.volume_size, "DeleteOnTermination": delete,
            "VolumeType": volume_type, "Encrypted": snapshot.encrypted,
        }  # fmt: skip

    def _usable_image(self, image_id: str) -> Ami:
        image = self.amis.get(image_id)
        if not isinstance(image, Ami):
            raise InvalidAMIIdError([image_id])
        if image.state != "available":
            raise EC2ClientError("InvalidAMIID.Unavailable", f"The image ID '{image_id}' is not available")
        return image

    def _volume_size(self, ebs: Mapping[str, Any]) -> int:
        snapshot = self._completed_snapshot(ebs["SnapshotId"]) if ebs.get("SnapshotId") else None
        least = snapshot.volume_size if snapshot else 1
        size = int(ebs.get("VolumeSize") or least)
        if size < least:
            message = (
                f"Volume of size {size}GB is smaller than snapshot '{ebs['SnapshotId']}', expect size >= {least}GB"
            )
            raise EC2ClientError("InvalidBlockDeviceMapping", message)
        return size
