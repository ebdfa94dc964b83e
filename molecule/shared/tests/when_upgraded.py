"""What a new release changes on a machine, and what it leaves alone."""

from __future__ import annotations

import json
from typing import Any

testinfra_hosts = ["ansible://pcgr"]


def test_the_data_is_the_same(host: Any) -> None:
    before = host.file("/root/data.before").content_string.splitlines()
    now = host.check_output(r"find /mnt/pcgr/bundles /mnt/pcgr/vep -printf '%i %s %T@ %p\n'").splitlines()
    assert len(before) > 10
    assert sorted(now) == sorted(before)


def test_the_image_is_the_new_one(host: Any) -> None:
    before = json.loads(host.file("/root/runtime.before").content_string)
    now = json.loads(host.file("/etc/pcgr/runtime.json").content_string)
    assert now["image"] != before["image"]
    assert host.check_output(f"docker image inspect --format '{{{{ .Config.Labels.next }}}}' {now['image']}") == "yes"


def test_the_service_reports_with_the_new_release_without_being_told(host: Any) -> None:
    """It ran all the time; the sample of the tests before has been reported with the new release's image."""
    started = host.check_output(
        "journalctl --unit pcgr-consumer --output cat --grep 'waiting for samples'"
    ).splitlines()
    assert ["rehearsal," in started[0], "9.9.9," in started[-1]] == [True, True]
