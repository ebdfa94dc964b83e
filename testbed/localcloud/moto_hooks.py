"""moto's EC2, backed by virtual machines.

moto keeps the records and answers the API, but its instances change state at once and run nowhere. The classes here
replace moto's own, under the same names because moto builds its answers by class name; the docstring or comment of each
method says how it differs. ``install`` must run before the first request.
"""

from __future__ import annotations

import base64
import copy
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import moto.ec2.urls
from moto.core.responses import ActionResult, EmptyResult
from moto.core.types import Base64EncodedString
from moto.ec2 import models as ec2_models
from moto.ec2.exceptions import EC2ClientError, MissingParameterError
from moto.ec2.models import (
    amis,
    elastic_block_store,
    elastic_ip_addresses,
    elastic_network_interfaces,
    instances,
    spot_requests,
)
from moto.ec2.models.instances import InstanceState, MetadataOptions, Reservation, StateReason
from moto.ec2.responses import EC2Response
from moto.ec2.utils import random_spot_request_id

from localcloud import hypervisor, moto_ebs
from localcloud.moto_storage import Ami, PendingSnapshot, Storage

CODES = {"pending": 0, "running": 16, "shutting-down": 32, "terminated": 48, "stopping": 64, "stopped": 80}
NO_TOKEN = "ABCDE"  # noqa: S105 - not a secret: moto's placeholder for a request without ClientToken


class Instance(instances.Instance):
    """An instance whose state follows its virtual machine."""

    spot_instance_request_id: str | None = None  # moto has none for instances launched with market options
    reboot_requested = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.set_state("pending")

    def set_state(self, state: str, reason: tuple[str, str] | None = None, transition: str | None = None) -> None:
        """Set the state and, if given, its reason as (code, message)."""
        self._state = InstanceState(state, CODES[state])
        if reason:
            self.state_reason = StateReason(f"{reason[0]}: {reason[1]}", reason[0])
            self._reason = transition if transition is not None else f"{reason[0]}: {reason[1]}"

    def start(self) -> InstanceState:
        """Start a stopped instance. moto starts terminated instances too, and at once."""
        previous = self._check_state("started", "stopped", "pending", "running")
        if previous.name == "stopped":
            super().start()
            self.launch_time = datetime.now(UTC)
            self.set_state("pending")
            hypervisor.current.wake()
        return previous

    def stop(self) -> InstanceState:
        """Begin to stop a pending or running instance. moto stops it at once."""
        previous = self._check_state("stopped", "stopped", "stopping", "pending", "running")
        if previous.name in ("pending", "running"):
            self.set_state("stopping", *_user_shutdown_reason())
            hypervisor.current.wake()
        return previous

    def terminate(self) -> InstanceState:
        """Begin to terminate the instance. moto terminates it at once."""
        previous = copy.copy(self._state)
        if previous.name not in ("shutting-down", "terminated"):
            self.set_state("shutting-down", *_user_shutdown_reason())
            hypervisor.current.wake()
        return previous

    def reboot(self) -> None:
        """Request a reboot of the virtual machine."""
        self._check_state("rebooted", "pending", "running")
        self.reboot_requested = True
        hypervisor.current.wake()

    def finish_stop(self) -> None:
        """Record that the virtual machine is off."""
        reason, transition = self.state_reason, self._reason
        super().stop()
        self.state_reason, self._reason = reason, transition
        self._end_spot_request()

    def finish_terminate(self) -> None:
        """Record that the virtual machine is gone, and delete its volumes and network interfaces."""
        reason, transition = self.state_reason, self._reason
        if not self.ec2_backend.get_spot_fleet_request(self._spot_fleet_id) and not (
            self.ec2_backend.get_fleet(self._spot_fleet_id) or self.ec2_backend.get_fleet(self._fleet_id)
        ):
            # The fleet was deleted in the meantime, but moto expects it to exist.
            self._spot_fleet_id = self._fleet_id = None
        super().terminate()
        self.state_reason, self._reason = reason, transition
        self._end_spot_request()

    def _end_spot_request(self) -> None:
        # moto never closes the request.
        request = self.ec2_backend.spot_instance_requests.get(self.spot_instance_request_id)
        if request and request.state == "active" and self.state == "terminated":
            by_price = self.state_reason.code == "Server.SpotInstanceTermination"
            request.close("instance-terminated-no-capacity" if by_price else "instance-terminated-by-user")

    def _check_state(self, done: str, *allowed: str) -> InstanceState:
        if self.state not in allowed:
            message = f"The instance '{self.id}' is not in a state from which it can be {done}."
            raise EC2ClientError("IncorrectInstanceState", message)
        return copy.copy(self._state)

    @property
    def public_dns_name(self) -> str | None:
        """The public address: a name that no DNS resolves would be useless to SSH and inventories."""
        return self.public_ip

    @property
    def instance_status(self) -> dict[str, Any]:
        """Status checks, ``initializing`` until the guest is up. moto's pass at once."""
        if self.state != "running" or hypervisor.current.guest_is_up(self.id):
            return super().instance_status
        return {"Details": [{"Name": "reachability", "Status": "initializing"}], "Status": "initializing"}


def _user_shutdown_reason() -> tuple[tuple[str, str], str]:
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
    return ("Client.UserInitiatedShutdown", "User initiated shutdown"), f"User initiated ({now} GMT)"


def _utc_now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


class NetworkInterface(elastic_network_interfaces.NetworkInterface):
    """A network interface whose public DNS name is its public address."""

    @property
    def association(self) -> dict[str, Any]:
        """The association with a public address, if there is one."""
        association = super().association
        return association | {"publicDnsName": self.public_ip} if association else association


class SpotInstanceRequest(spot_requests.SpotInstanceRequest):
    """A spot request with real times, closed when its instance ends."""

    create_time = ""  # moto uses a fixed time in 2015

    def __init__(self, *args: Any, launched: Instance | None = None, **kwargs: Any) -> None:
        self._launched = launched
        self.create_time = self._updated = _utc_now()
        super().__init__(*args, **kwargs)
        self.instance.spot_instance_request_id = self.id  # type: ignore[attr-defined]

    def launch_instance(self) -> instances.Instance:
        """Launch the instance with all fields of a launch template, or return the one that already runs."""
        if self._launched:
            return self._launched
        # moto reads only a few fields of a fleet's launch template; run_instances reads the rest from _thread.
        source = self.launch_spec.launch_template_spec if self.launch_spec else None
        if source:
            _thread.specification = self.ec2_backend._template(source) | {"InstanceMarketOptions": {}}
        try:
            return super().launch_instance()
        finally:
            if source:
                _thread.specification = {}

    def close(self, code: str) -> None:
        """Close the request with a status code."""
        self.state = "closed"
        self._status_code, self._updated = code, _utc_now()

    @property
    def status(self) -> dict[str, Any]:
        """moto's status with the time of the last change."""
        return super().status | {"UpdateTime": self._updated}

    @property
    def launched_availability_zone(self) -> str | None:
        """The availability zone of the instance."""
        return self.instance.availability_zone


class EC2Backend(Storage):
    """Instances and spot requests of one region."""

    _url_module = moto.ec2.urls  # moto derives the name from this module's

    def __init__(self, region_name: str, account_id: str) -> None:
        super().__init__(region_name, account_id)
        self._launched: dict[str, Reservation] = {}

    def run_instances(
        self, image_id: str, count: int, user_data: Any, security_group_names: list[str], **kwargs: Any
    ) -> Reservation:
        """Launch instances.

        moto ignores ClientToken, the image's devices, most of a launch template, and the instance profile of all but the
        first instance. It lists no spot request and launches deregistered images.
        """
        with hypervisor.current.lock:
            token = kwargs.get("client_token", NO_TOKEN)
            if token != NO_TOKEN and token in self._launched:
                return self._launched[token]
            template = self._template(kwargs.get("launch_template") or {})
            if kwargs.get("lifecycle") == "spot":
                template |= getattr(_thread, "specification", {})
                kwargs["security_group_ids"] = template.get("SecurityGroupIds") or kwargs.get("security_group_ids")
            image = self._usable_image(image_id or template.get("ImageId", ""))
            market = kwargs.get("instance_market_options") or template.get("InstanceMarketOptions", {}).get(
                "MarketType"
            )
            profile = template.get("IamInstanceProfile", {})
            name = kwargs.get("iam_instance_profile_name") or profile.get("Name")
            arn = kwargs.get("iam_instance_profile_arn") or profile.get("Arn")
            requested = kwargs.get("block_device_mappings") or template.get("BlockDeviceMappings") or []
            kwargs["block_device_mappings"] = self._devices(image, requested)
            options = template.get("MetadataOptions", {}) | (kwargs.get("metadata_options") or {})
            # moto defaults to version 1; new accounts and Debian's images require tokens.
            kwargs["metadata_options"] = {"HttpTokens": "required"} | options
            kwargs["instance_market_options"] = market
            kwargs["instance_initiated_shutdown_behavior"] = kwargs.get(
                "instance_initiated_shutdown_behavior"
            ) or template.get("InstanceInitiatedShutdownBehavior")
            self._set_network(kwargs, template, security_group_names)
            reservation = self._run(image.id, count, user_data, security_group_names, kwargs)
            for number, instance in enumerate(reservation.instances):
                from_request = kwargs.get("iam_instance_profile_name") or kwargs.get("iam_instance_profile_arn")
                if (name or arn) and (number or not from_request):  # moto's handler associates the first one
                    self.associate_iam_instance_profile(instance.id, name, arn)
                if market == "spot":
                    self._record_spot_request(instance, kwargs)
            if token != NO_TOKEN:
                self._launched[token] = reservation
            hypervisor.current.wake()
            return reservation

    def _run(self, image_id: str, count: int, user_data: Any, groups: list[str], kwargs: dict[str, Any]) -> Reservation:
        before = set(self.reservations)
        try:
            return super().run_instances(image_id, count, user_data, groups, **kwargs)
        except Exception:
            for key in set(self.reservations) - before:  # moto keeps what it created before it refused
                for instance in self.reservations[key].instances:
                    for _unused, block in instance.get_block_device_mapping:
                        block.delete_on_termination = True
                    instance.teardown_defaults()
                del self.reservations[key]
            raise

    def _set_network(self, kwargs: dict[str, Any], template: Mapping[str, Any], group_names: Sequence[str]) -> None:
        # Without a subnet, moto falls back to EC2-Classic: an address outside the VPC and no security group.
        if not (kwargs.get("subnet_id") or kwargs.get("nics") or template.get("NetworkInterfaces")):
            zone = kwargs.get("placement") or f"{self.region_name}a"
            subnet = self.get_default_subnets().get(zone)
            kwargs["subnet_id"] = subnet.id if subnet else None
        kwargs.setdefault(
            "associate_public_ip", None
        )  # the subnet decides; moto assigns none to spot requests and fleets
        named = kwargs.get("security_group_ids") or template.get("SecurityGroupIds") or template.get("SecurityGroups")
        if kwargs.get("subnet_id") and not named and not group_names:
            vpc_id = self.get_subnet(kwargs["subnet_id"]).vpc_id
            kwargs["security_group_ids"] = [self.get_default_security_group(vpc_id).id]  # type: ignore[union-attr]

    def _template(self, argument: Mapping[str, Any]) -> dict[str, Any]:
        return dict(self._get_template_from_args(dict(argument)).data) if argument else {}

    def _devices(self, image: Ami, requested: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the image's devices with the request's changes, in moto's form, root volume first."""
        devices = {mapping["DeviceName"]: copy.deepcopy(dict(mapping)) for mapping in image.mappings}
        for mapping in requested:
            device = devices.setdefault(mapping["DeviceName"], {"DeviceName": mapping["DeviceName"], "Ebs": {}})
            device["Ebs"] |= {key: value for key, value in mapping.get("Ebs", {}).items() if value is not None}
            device["NoDevice"] = mapping.get("NoDevice")
        for device in devices.values():
            device["Ebs"]["VolumeSize"] = self._volume_size(device["Ebs"])
        return list(devices.values())

    def _record_spot_request(self, instance: Any, kwargs: Mapping[str, Any]) -> None:
        groups = [group.id for group in instance.security_groups]
        request = SpotInstanceRequest(
            self, random_spot_request_id(), "", instance.image_id, "one-time", None, None, None, None,
            instance.key_name, groups, instance.user_data, instance.instance_type, instance.availability_zone, None, None,
            False, instance.subnet_id, kwargs.get("tags") or {}, None, None, launched=instance,
        )  # fmt: skip
        self.spot_instance_requests[request.id] = request

    def cancel_spot_instance_requests(self, request_ids: list[str]) -> list[spot_requests.SpotInstanceRequest]:
        """Cancel requests and keep them listed. moto deletes them."""
        requests = [self.spot_instance_requests[key] for key in request_ids]
        for request in requests:
            request.state = "cancelled"
        return requests

    def modify_instance_metadata_options(self, instance_id: str, *args: Any, **kwargs: Any) -> MetadataOptions:
        """Change the named options only. moto resets those that the request omits."""
        before = self.get_instance(instance_id).metadata_options
        after = super().modify_instance_metadata_options(instance_id, *args, **kwargs)
        for key, value in vars(before).items():
            if vars(after)[key] is None:
                setattr(after, key, value)
        return after


def _create_image(self: EC2Response) -> ActionResult:
    """Handle CreateImage. moto's handler ignores NoReboot and BlockDeviceMappings."""
    self.error_on_dryrun()
    image = self.ec2_backend.create_image(
        self._get_param("InstanceId"),
        self._get_param("Name"),
        self._get_param("Description", ""),
        tag_specifications=self._get_param("TagSpecifications", []),
        no_reboot=self._get_bool_param("NoReboot", False),
        mappings=self._get_param("BlockDeviceMappings", []),
    )
    return ActionResult({"ImageId": image.id})


def _register_image(self: EC2Response) -> ActionResult:
    """Handle RegisterImage. moto's handler ignores everything but name and description."""
    self.error_on_dryrun()
    image = self.ec2_backend.register_image(
        self._get_param("Name"),
        self._get_param("Description", ""),
        mappings=self._get_param("BlockDeviceMappings", []),
        root_device=self._get_param("RootDeviceName", "/dev/sda1"),
        architecture=self._get_param("Architecture"),
        boot_mode=self._get_param("BootMode"),
        imds_support=self._get_param("ImdsSupport"),
        ena_support=self._get_bool_param("EnaSupport"),
    )
    image.add_tags(self._parse_tag_specification().get("image", {}))
    return ActionResult({"ImageId": image.id})


def _modify_image_attribute(self: EC2Response) -> ActionResult:
    """Handle ModifyImageAttribute. moto's handler knows launch permissions only."""
    changes = {
        "imds_support": self._get_param("ImdsSupport.Value"),
        "description": self._get_param("Description.Value"),
    }
    if not any(changes.values()):
        return _moto_modify_image_attribute(self)
    image = self.ec2_backend.describe_images(ami_ids=[self._get_param("ImageId")])[0]
    self.error_on_dryrun()
    for name, value in hypervisor.without_none(changes).items():
        setattr(image, name, value)
    return EmptyResult()


def _enable_image_deprecation(self: EC2Response) -> ActionResult:
    """Handle EnableImageDeprecation, which moto lacks. Deprecated images stay listed here."""
    image = self.ec2_backend.describe_images(ami_ids=[self._get_param("ImageId")])[0]
    self.error_on_dryrun()
    image.deprecation_time = f"{self._get_param('DeprecateAt'):%Y-%m-%dT%H:%M:00.000Z}"  # EC2 rounds to the minute
    return ActionResult({"Return": True})


def _enable_image_deregistration_protection(self: EC2Response) -> ActionResult:
    """Handle EnableImageDeregistrationProtection, which moto lacks."""
    return _protect(
        self, "enabled-with-cooldown" if self._get_bool_param("WithCooldown") else "enabled-without-cooldown"
    )


def _disable_image_deregistration_protection(self: EC2Response) -> ActionResult:
    return _protect(self, "disabled")  # no cooldown, which takes a day on AWS


def _protect(self: EC2Response, state: str) -> ActionResult:
    image = self.ec2_backend.describe_images(ami_ids=[self._get_param("ImageId")])[0]
    self.error_on_dryrun()
    image.deregistration_protection = state
    return ActionResult({"Return": state})


def _describe_snapshots(self: EC2Response) -> ActionResult:
    """Handle DescribeSnapshots. moto's handler ignores OwnerIds, so that "self" would list everybody's."""
    found = self.ec2_backend.describe_snapshots(self._get_param("SnapshotIds", []), self._filters_from_querystring())
    owners = [self.current_account if owner == "self" else owner for owner in self._get_param("OwnerIds", [])]
    return ActionResult({"Snapshots": [snapshot for snapshot in found if not owners or snapshot.owner_id in owners]})


def _modify_instance_attribute(self: EC2Response) -> ActionResult:
    """Handle ModifyInstanceAttribute. moto's handler ignores the shutdown behaviour in the form that boto3 sends."""
    behaviour = self._get_param("InstanceInitiatedShutdownBehavior.Value")
    if behaviour is None:
        return _moto_modify_instance_attribute(self)
    self.error_on_dryrun()
    instance_id = self._get_param("InstanceId")
    self.ec2_backend.modify_instance_attribute(instance_id, "instance_initiated_shutdown_behavior", behaviour)
    return EmptyResult()


_thread = threading.local()


def _request_spot_instances(self: EC2Response) -> ActionResult:
    """Handle RequestSpotInstances.

    moto's handler ignores devices, instance profile and security group ids; ``run_instances`` reads them from _thread.
    """
    _thread.specification = self._get_param("LaunchSpecification", {})
    try:
        return _moto_request_spot_instances(self)
    finally:
        _thread.specification = {}


def _get_console_output(self: EC2Response) -> ActionResult:
    """Handle GetConsoleOutput. moto returns a fixed text."""
    instance = self.ec2_backend.get_instance(self._get_param("InstanceId"))
    text = base64.b64encode(hypervisor.current.console(instance.id)).decode()
    return ActionResult(
        {"InstanceId": instance.id, "Timestamp": datetime.now(UTC), "Output": Base64EncodedString(text)}
    )


def _parse_block_device_mapping(self: EC2Response) -> list[dict[str, Any]]:
    """Parse device mappings. moto's parser fills in defaults, which would hide what is to be inherited from the image."""
    for mapping in self._get_param("BlockDeviceMappings", []):
        if mapping.get("NoDevice") is None and "Ebs" not in mapping and not mapping.get("VirtualName"):
            raise MissingParameterError("ebs")
    return [dict(mapping) for mapping in self._get_param("BlockDeviceMappings", [])]


_moto_request_spot_instances = EC2Response.request_spot_instances
_moto_modify_image_attribute = EC2Response.modify_image_attribute
_moto_modify_instance_attribute = EC2Response.modify_instance_attribute


def install(backend: hypervisor.Hypervisor) -> None:
    """Replace moto's classes and handlers by those of this module, backed by ``backend``."""
    hypervisor.current = backend
    ec2_models.ec2_backends.backend = EC2Backend
    moto_ebs.install()
    for handler in (_create_image, _register_image, _modify_image_attribute, _modify_instance_attribute,
                    _enable_image_deprecation, _enable_image_deregistration_protection,
                    _disable_image_deregistration_protection, _describe_snapshots, _request_spot_instances,
                    _get_console_output, _parse_block_device_mapping):  # fmt: skip
        name = handler.__name__
        setattr(EC2Response, name if hasattr(EC2Response, name) else name[1:], handler)
    replacements: list[tuple[Any, str, Any]] = [
        (instances, "Instance", Instance),
        (amis, "Ami", Ami),
        (elastic_block_store, "Snapshot", PendingSnapshot),
        (spot_requests, "SpotInstanceRequest", SpotInstanceRequest),
        (elastic_network_interfaces, "NetworkInterface", NetworkInterface),
        (elastic_network_interfaces, "random_public_ip", backend.free_public_address),
        (elastic_ip_addresses, "random_ip", backend.free_public_address),
    ]
    for module, name, replacement in replacements:
        setattr(module, name, replacement)
