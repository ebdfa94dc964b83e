"""The environment that directs clients to a region and keeps them away from AWS."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from localcloud.lifecycle import HOST
from localcloud.settings import HOST_FROM_GUEST, SSH_PORT, Settings

PLUGIN = Path(__file__).parent / "awscli_plugin"
PROXY_USER = "localcloud"  # marks a region's proxy in HTTPS_PROXY; the proxy itself requires no user name
AWS_DOMAINS = (
    "amazonaws.com",
    "amazonaws.com.cn",
    "amazonaws.eu",
    "api.aws",
    "aws.amazon.com",
    "on.aws",
    "sgov.gov",
    "ic.gov",
)
# Variables that override or disable a value set here, or that name a real account.
CONFLICTING = re.compile(
    r"AWS_(DEFAULT_)?PROFILE|AWS_(SESSION|SECURITY)_TOKEN|AWS_ENDPOINT_URL_\w+|AWS_URL|EC2_URL|S3_URL|AWS_USE_(FIPS|DUALSTACK)_ENDPOINT"
    r"|AWS_ROLE_(ARN|SESSION_NAME)|AWS_WEB_IDENTITY_TOKEN_FILE|AWS_CONTAINER_\w+|AWS_CREDENTIAL_\w+|AWS_(ACCESS|SECRET)_KEY"
    r"|AWS_ACCOUNT_ID|EC2_(ACCESS|SECRET)_KEY"
)


def environment(settings: Settings, record: Mapping[str, Any], outer: Mapping[str, str]) -> dict[str, str]:
    """Return the variables for clients of the region of ``record``, in a shell whose environment is ``outer``."""
    url = f"http://{HOST}:{record['port']}"
    guest = f"http://{HOST_FROM_GUEST}:"
    values = {
        "AWS_ENDPOINT_URL": url,
        "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "false",
        "AWS_DEFAULT_REGION": record["region"],
        "AWS_REGION": record["region"],
        "AWS_ACCESS_KEY_ID": "localcloud",
        "AWS_SECRET_ACCESS_KEY": "localcloud",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(settings.client_config),
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "PYTHONPATH": _joined(os.pathsep, str(PLUGIN), outer.get("PYTHONPATH", "")),
        "LOCALCLOUD_GUEST_ENDPOINT_URL": f"{guest}{record['port']}",
        "LOCALCLOUD_AMI": record["image"],
        "LOCALCLOUD_SSH_PORT": str(SSH_PORT),
    }
    if record["mirror_port"]:
        values["LOCALCLOUD_MIRROR_URL"] = f"{guest}{record['mirror_port']}"
    direct = _joined(",", HOST, "localhost", *_direct_hosts(outer))
    # Some clients read the upper-case name, some the lower-case one, and they differ in precedence.
    for name, value in (("HTTPS_PROXY", f"http://{PROXY_USER}@{HOST}:{record['port']}"), ("NO_PROXY", direct)):
        values |= {name: value, name.lower(): value}
    return values


def conflicting(outer: Mapping[str, str]) -> list[str]:
    """Return the names of variables in ``outer`` with which a client could still reach AWS."""
    return sorted(name for name in outer if CONFLICTING.fullmatch(name))


def without_conflicting(outer: Mapping[str, str]) -> dict[str, str]:
    """Return ``outer`` without the conflicting variables and the user's files of profiles and keys."""
    removed = conflicting(outer)
    files = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    return {name: value for name, value in outer.items() if name not in removed} | files


def write_config(settings: Settings, port: int) -> None:
    """Write the configuration file for the ``aws`` command and the SDKs."""
    # Version 1 of the aws command ignores AWS_ENDPOINT_URL for some services; the plugin corrects that.
    lines = ["[default]", f"region = {settings.region}", f"endpoint_url = http://{HOST}:{port}"]
    lines += ["[plugins]", "localcloud = localcloud_endpoint", ""]
    settings.client_config.write_text("\n".join(lines))


def is_aws(host: str) -> bool:
    """Whether a host name belongs to AWS."""
    name = host.lower().rstrip(".")
    return any(name == domain or name.endswith(f".{domain}") for domain in AWS_DOMAINS)


def outer_proxy(outer: Mapping[str, str]) -> str | None:
    """Return the URL of the proxy in ``outer``; None if there is none, or only that of a region."""
    for name in ("https_proxy", "HTTPS_PROXY"):
        if (url := outer.get(name)) and urlsplit(url).username != PROXY_USER:
            return url
    return None


def _direct_hosts(outer: Mapping[str, str]) -> list[str]:
    """Return the hosts that ``outer`` reaches without a proxy, except those of AWS."""
    entries = f"{outer.get('no_proxy', '')},{outer.get('NO_PROXY', '')}".split(",")
    hosts = dict.fromkeys(entry.strip() for entry in entries)
    return [host for host in hosts if host not in ("", "*", HOST, "localhost") and not _covers_aws(host)]


def _covers_aws(entry: str) -> bool:
    name = entry.lower().lstrip("*").strip(".").partition(":")[0]
    return is_aws(name) or any(domain.endswith(f".{name}") for domain in AWS_DOMAINS)


def _joined(separator: str, *parts: str) -> str:
    """Join the parts, without empty and repeated ones."""
    return separator.join(dict.fromkeys(part for text in parts for part in text.split(separator) if part))
