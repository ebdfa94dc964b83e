"""The network was cut: else the scenario would show nothing."""

from __future__ import annotations

import subprocess
from typing import Any
from urllib.parse import urlsplit

import testinfra

testinfra_hosts = ["ansible://pcgr"]


def reaches(host: Any, name: str) -> bool:
    code = f"import socket; socket.create_connection(({name!r}, 80), 5)"
    return bool(host.run(f'python3 -c "{code}"').rc == 0)


def elsewhere() -> str:
    """Host that the controller has its Debian packages from."""
    sites = subprocess.check_output(["apt-get", "indextargets", "--format", "$(SITE)"], text=True).split()
    return next(str(urlsplit(site).hostname) for site in sites if "debian" in site)


def test_only_the_mirror_can_be_reached(host: Any) -> None:
    mirror = testinfra.get_host("docker://pcgr-mirror")
    name = elsewhere()
    address = mirror.check_output(f"getent ahostsv4 {name}").split()[0]
    assert reaches(mirror, address)
    assert reaches(host, "pcgr-mirror")
    assert not reaches(host, address)
    assert not reaches(host, name)
