"""Support shared by the demo, the tests and the benchmarks: images, a local region, instances, playbooks."""

from harness.images import CACHE, MIRROR, prepare_images, prepare_mirror
from harness.playbook import REGION_VARIABLES, key_variables, run_playbook
from harness.process import ROOT, Progress, StepError, follow, run
from harness.region import client, local_region, make_key, plain_instance, write_inventory

__all__ = [
    "CACHE",
    "MIRROR",
    "REGION_VARIABLES",
    "ROOT",
    "Progress",
    "StepError",
    "client",
    "follow",
    "key_variables",
    "local_region",
    "make_key",
    "plain_instance",
    "prepare_images",
    "prepare_mirror",
    "run",
    "run_playbook",
    "write_inventory",
]
