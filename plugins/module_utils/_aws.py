# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules for the settings of the roles aws and intake. Nothing here calls AWS."""

from __future__ import annotations

import base64
import binascii
import importlib.util
import ipaddress
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What the lookup umccr.pcgr.spot needs beside boto3.
SPOT_LIBRARIES = ("numpy", "msgspec")
# Types of key that EC2 imports (User Guide, "Create a key pair").
KEY_TYPES = ("ssh-ed25519", "ssh-rsa")
# The largest gp3 volume in GiB (EBS User Guide, "General Purpose SSD volumes").
MOST_VOLUME_GIB = 65536
REGION = re.compile(r"[a-z]{2,}(-[a-z]+)+-[0-9]+")

Rule = Callable[[Any], Any]


class SettingError(ValueError):
    """A setting is refused; the text says what was found and what is allowed, without the setting's name."""


def check(settings: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the settings in their normal form, and one text for each that is refused.

    Settings that depend on others are checked when the deciding one is among ``settings``, so a caller may pass a part.
    """
    normal: dict[str, Any] = {}
    faults: list[str] = []
    for name, value in settings.items():
        try:
            # Without aws_spot auto the files of the choice are not read.
            if name in SPOT_FILES and str(settings.get("aws_spot")).strip().lower() != "auto":
                normal[name] = value
            else:
                normal[name] = RULES.get(name, _unknown)(value.strip() if isinstance(value, str) else value)
        except SettingError as error:
            faults.append(f"{name}: {error}")
    return normal, faults + _together(normal)


def check_region(region: str | None) -> str:
    """Return the region; raises SettingError when there is none or it has no region's form."""
    if not region:
        raise SettingError(
            "found none, allowed a region such as eu-west-2: set aws_region, the environment variable AWS_REGION or "
            "AWS_DEFAULT_REGION, or a region in the AWS profile"
        )
    if not REGION.fullmatch(region):
        raise SettingError(f"found {region!r}, allowed a region such as eu-west-2")
    return region


def _together(normal: dict[str, Any]) -> list[str]:
    """Faults of settings that are fine alone but not together."""
    faults = []
    missing = {name for name, value in normal.items() if value is None}
    if "aws_ssh_cidr" in missing and not normal.get("aws_security_group"):
        faults.append(
            "aws_ssh_cidr: found none, allowed the addresses that may use SSH, such as 203.0.113.7/32 "
            "(or set aws_security_group to an existing group)"
        )
    cidr = normal.get("aws_ssh_cidr")
    if cidr and ipaddress.ip_network(cidr).prefixlen == 0 and not normal.get("aws_ssh_from_anywhere"):
        faults.append(
            f"aws_ssh_cidr: found {cidr!r}, which is everybody, allowed the addresses that may use SSH, "
            "such as 203.0.113.7/32 (or confirm with aws_ssh_from_anywhere: true)"
        )
    if "aws_public_key_file" in missing and not normal.get("aws_key_name"):
        faults.append(
            "aws_public_key_file: found none, allowed a public key's file (or set aws_key_name to an existing key pair)"
        )
    return faults


def _unknown(_value: Any) -> Any:
    raise SettingError("found no rule for it, allowed a setting of the roles aws and intake")


def _shown(value: Any) -> str:
    return "none" if value is None or value in ("", []) else repr(value)


def _matching(pattern: str, allowed: str, *, optional: bool = False) -> Rule:
    def rule(value: Any) -> Any:
        if optional and value in (None, ""):
            return None
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise SettingError(f"found {_shown(value)}, allowed {allowed}")
        return value

    return rule


def _resource(prefix: str) -> Rule:
    return _matching(rf"{prefix}-[0-9a-f]{{8,17}}", f"{prefix}- and 8 or 17 hexadecimal digits", optional=True)


def _number(least: int, most: int | None = None, *, optional: bool = False) -> Rule:
    allowed = f"a whole number from {least}" + (f" to {most}" if most is not None else "")

    def rule(value: Any) -> Any:
        if optional and value in (None, ""):
            return None
        text = "" if isinstance(value, bool) else str(value)
        if not re.fullmatch(r"-?[0-9]+", text) or int(text) < least or (most is not None and int(text) > most):
            raise SettingError(f"found {_shown(value)}, allowed {allowed}")
        return int(text)

    return rule


def _boolean(value: Any) -> bool:
    text = str(value).lower()
    if text in ("true", "yes", "on", "1"):
        return True
    if text in ("false", "no", "off", "0"):
        return False
    raise SettingError(f"found {_shown(value)}, allowed true or false")


def _each(rule: Rule, *, least: int = 0, allowed: str = "a list") -> Rule:
    def listed(value: Any) -> list[Any]:
        if not isinstance(value, list) or len(value) < least:
            raise SettingError(f"found {_shown(value)}, allowed {allowed}")
        try:
            return [rule(item) for item in value]
        except SettingError as error:
            raise SettingError(str(error).replace(_shown(next(iter(value))), _shown(value), 1)) from error

    return listed


def _spot(value: Any) -> Any:
    """True, False or "auto"; values of ``-e aws_spot=true`` arrive as text."""
    text = str(value).lower()
    if text == "auto":
        missing = [name for name in SPOT_LIBRARIES if importlib.util.find_spec(name) is None]
        if missing:
            raise SettingError(
                f"found auto without the Python {'library' if len(missing) == 1 else 'libraries'} {' and '.join(missing)}, "
                f"allowed auto with {' and '.join(SPOT_LIBRARIES)} on the controller, else true or false"
            )
        return text
    try:
        return _boolean(value)
    except SettingError:
        raise SettingError(f"found {_shown(value)}, allowed true, false or auto") from None


def _cidr(value: Any) -> str | None:
    """An address range in its normal form; one address alone is a range of one."""
    if value in (None, ""):
        return None
    allowed = "a range of IPv4 or IPv6 addresses, such as 203.0.113.7/32 or 2001:db8::/48"
    try:
        return str(ipaddress.ip_network(value))
    except ValueError:
        pass
    try:
        meant = ipaddress.ip_interface(value)
    except ValueError:
        raise SettingError(f"found {_shown(value)}, allowed {allowed}") from None
    raise SettingError(f"found {value!r}, allowed {meant.network} or {meant.ip}/{meant.ip.max_prefixlen}")


def _file(value: Any) -> Path | None:
    """The file that a setting names; None when it names none."""
    if value in (None, ""):
        return None
    path = Path(str(value)).expanduser()
    if not path.is_file():
        raise SettingError(f"found no file {path}, allowed a file on the controller")
    return path


def _existing_file(value: Any) -> str | None:
    path = _file(value)
    return None if path is None else str(path)


def _public_key(value: Any) -> str | None:
    """A public key that EC2 imports. The file's content is never shown: it may be a private key."""
    path = _file(value)
    if path is None:
        return None
    allowed = f"an OpenSSH public key of a type that EC2 takes: {' or '.join(KEY_TYPES)}"
    try:
        kind, _unused, rest = path.read_text(encoding="ascii").strip().partition(" ")
        blob = base64.b64decode(rest.split()[0], validate=True)
    except (OSError, UnicodeDecodeError, IndexError, binascii.Error) as error:
        why = error.strerror if isinstance(error, OSError) else "what is no public key"
        raise SettingError(f"found {why} in {path}, allowed {allowed}") from None
    name = kind.encode()
    # The key begins with its type's length and name (RFC 4253, section 6.6).
    if kind not in KEY_TYPES or not blob.startswith(len(name).to_bytes(4, "big") + name):
        found = kind if re.fullmatch(r"(ssh|ecdsa|sk)-[a-z0-9@.-]+", kind) else "what is no public key"
        raise SettingError(f"found {found} in {path}, allowed {allowed}")
    return str(path)


# Read with aws_spot auto only.
SPOT_FILES = ("aws_spot_advisor", "aws_spot_on_demand", "aws_spot_history")

# Queue, role and group carry the name with an ending, and a role's name has at most 64 characters. EC2 refuses sg-.
_NAME = _matching(r"(?!sg-)[A-Za-z0-9_-]{1,56}", "1 to 56 letters, digits, - and _, not beginning with sg-")
_QUEUE = _matching(r"[A-Za-z0-9_-]{1,80}", "1 to 80 letters, digits, - and _")
_ROLE = _matching(r"[A-Za-z0-9+=,.@_-]{1,64}", "1 to 64 letters, digits and +=,.@_-")
_BUCKET = _matching(
    r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]",
    "3 to 63 lower-case letters, digits, . and -, beginning and ending with a letter or digit",
    optional=True,
)
_TYPE = _matching(r"[a-z0-9-]+\.[a-z0-9-]+", "an instance type such as m5.xlarge")
_TEXT = _matching(r"[^\n]+", "one line of text")

RULES: dict[str, Rule] = {
    "aws_name": _NAME,
    "aws_image": _resource("ami"),
    "aws_image_owner": _matching(r"[0-9]{12}|[a-z-]+", "an account of 12 digits, or an alias such as amazon"),
    "aws_image_name": _TEXT,
    "aws_instance_type": _TYPE,
    "aws_spot": _spot,
    "aws_spot_types": _each(_TYPE, allowed="a list of instance types"),
    "aws_spot_vcpus": _number(1),
    "aws_spot_memory_gib": _number(1),
    "aws_spot_disk_gb": _number(0),
    "aws_spot_losses": _number(1),
    "aws_spot_budget_usd": _number(0),
    "aws_spot_budget_hours": _number(1),
    "aws_spot_advisor": _existing_file,
    "aws_spot_on_demand": _existing_file,
    "aws_spot_history": _each(_existing_file, allowed="a list of files"),
    "aws_spot_log": _TEXT,
    "aws_bucket": _BUCKET,
    "aws_volume_gb": _number(1, MOST_VOLUME_GIB),
    "aws_data_volume_gb": _number(1, MOST_VOLUME_GIB, optional=True),
    "aws_data_snapshot": _resource("snap"),
    "aws_subnet": _resource("subnet"),
    "aws_vpc": _resource("vpc"),
    "aws_public_key_file": _public_key,
    "aws_key_name": _matching(r"[ -~]{1,255}", "1 to 255 ASCII characters", optional=True),
    "aws_private_key_file": _existing_file,
    "aws_security_group": _resource("sg"),
    "aws_ssh_cidr": _cidr,
    "aws_ssh_from_anywhere": _boolean,
    "aws_ssh_user": _matching(r"[a-z_][a-z0-9_-]*", "a user's name such as admin"),
    "aws_ssh_port": _number(1, 65535),
    "aws_instance_profile": _matching(
        r"[A-Za-z0-9+=,.@_-]{1,128}", "1 to 128 letters, digits and +=,.@_-", optional=True
    ),
    "aws_guest_endpoint_url": _matching(
        r"https?://[^\s/]+\S*", "an address that begins with http:// or https://", optional=True
    ),
    "aws_poweroff_when_drained": _boolean,
    "aws_max_age_hours": _number(0),
    "aws_wait_seconds": _number(1),
    "intake_name": _NAME,
    "intake_bucket": _BUCKET,
    "intake_queue": _QUEUE,
    "intake_dead_queue": _QUEUE,
    "intake_role": _ROLE,
    "intake_suffixes": _each(_TEXT, least=1, allowed="a list of endings of object names"),
    "intake_visibility_seconds": _number(0, 43200),
    "intake_max_receives": _number(1, 1000),
    "intake_retention_seconds": _number(60, 1209600),
    "intake_require_tls": _boolean,
    "intake_delete_data": _boolean,
}
