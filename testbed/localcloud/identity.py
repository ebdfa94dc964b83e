"""What the metadata service reports to an instance, assembled from the records at each request."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from datetime import UTC
from typing import Any

from moto.sts.models import sts_backends

from localcloud.metadata import InstanceView
from localcloud.moto_hooks import EC2Backend, Instance
from localcloud.settings import ACCOUNT

CREDENTIAL_SECONDS = 21600  # lifetime of role credentials on an instance: about 6 h on EC2
RENEW_SECONDS = 3600  # new credentials are issued an hour before the old ones expire


class Identities:
    """Creates views of instances and caches their role credentials."""

    def __init__(self) -> None:
        self._credentials: dict[tuple[str, str], tuple[float, dict[str, str]]] = {}

    def view(
        self, backend: EC2Backend, instance: Instance, spot_action: Mapping[str, str] | None, rebalance: str | None
    ) -> InstanceView:
        """Return the instance as it is now, with the given notices."""
        nic = instance.nics[0]
        key = backend.key_pairs.get(instance.key_name) if instance.key_name else None
        association = backend.iam_instance_profile_associations.get(instance.id)
        role: Any = next(iter(association.iam_instance_profile.roles), None) if association else None
        shows_tags = instance.metadata_options.instance_metadata_tags == "enabled"
        return InstanceView(
            instance_id=instance.id,
            image_id=instance.image_id,
            instance_type=instance.instance_type,
            region=backend.region_name,
            availability_zone=instance.availability_zone or "",
            private_ip=instance.private_ip or "",
            public_ip=instance.public_ip,
            mac=nic.mac_address,
            hostname=instance.private_dns_name,
            account_id=ACCOUNT,
            reservation_id=next(r.id for r in list(backend.reservations.values()) if instance in r.instances),
            key_name=instance.key_name,
            public_key=key.public_key if key else None,
            security_groups=[group.name for group in nic.group_set],
            security_group_ids=[group.id for group in nic.group_set],
            user_data=base64.b64decode(str(instance.user_data)) if instance.user_data else None,
            role_name=role.name if role else None,
            credentials=(lambda: self._role_credentials(instance, role.arn)) if role else None,
            lifecycle=instance.lifecycle or "on-demand",
            tags={tag["key"]: tag["value"] for tag in instance.get_tags()} if shows_tags else {},
            block_devices=_block_devices(instance),
            spot_action=spot_action,
            rebalance=rebalance,
            tokens_required=instance.metadata_options.http_tokens == "required",
            launched=instance.launch_time.replace(tzinfo=UTC),
            interface_id=nic.id,
            subnet_id=nic.subnet_id,
            vpc_id=nic.vpc_id,
        )

    def _role_credentials(self, instance: Instance, arn: str) -> dict[str, str]:
        fresh, found = self._credentials.get((instance.id, arn), (0.0, {}))
        if time.monotonic() >= fresh:
            role = sts_backends[ACCOUNT]["aws"].assume_role(
                instance.region_name, instance.id, arn, "", CREDENTIAL_SECONDS, external_id=""
            )
            found = {
                "AccessKeyId": role.access_key_id,
                "SecretAccessKey": role.secret_access_key,
                "Token": role.session_token,
                "Expiration": role.expiration.strftime("%Y-%m-%dT%H:%M:%SZ"),
            }
            self._credentials[instance.id, arn] = (time.monotonic() + CREDENTIAL_SECONDS - RENEW_SECONDS, found)
        return found


def _block_devices(instance: Instance) -> dict[str, str]:
    root = instance.root_device_name
    others = [device for device in list(instance.block_device_mapping) if device != root]
    return {"ami": root, "root": root} | {f"ebs{number}": device for number, device in enumerate(others, 1)}
