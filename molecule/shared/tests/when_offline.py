"""The network was cut: else the scenario would show nothing."""

from __future__ import annotations

from typing import Any

import testinfra

testinfra_hosts = ["ansible://pcgr"]
ELSEWHERE = "deb.debian.org"


def reaches(host: Any, name: str) -> bool:
    code = f"import socket; socket.create_connection(({name!r}, 80), 5)"
    return bool(host.run(f'python3 -c "{code}"').rc == 0)


def test_only_the_mirror_can_be_reached(host: Any) -> None:
    mirror = testinfra.get_host("docker://pcgr-mirror")
    address = mirror.check_output(f"getent ahostsv4 {ELSEWHERE}").split()[0]
    assert reaches(mirror, address)
    assert reaches(host, "pcgr-mirror")
    assert not reaches(host, address)
    assert not reaches(host, ELSEWHERE)
