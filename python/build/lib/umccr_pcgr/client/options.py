"""Checks a sample's options against the command line of a PCGR release, as the consumer will."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.umccr.pcgr.plugins.module_utils._release import NEWEST, ReleaseError, load_release

from umccr_pcgr.client.store import Refused
from umccr_pcgr.samples.dialect import ConfigError, Inputs, arguments
from umccr_pcgr.samples.genome import LENGTHS
from umccr_pcgr.samples.naming import Sample

_FOLDER = "/sample"  # stands for the folder inside the container; the paths are only checked for their form


class OptionRefused(Exception):
    """An option that the release's command line does not take; the text is one line without the file."""


def dialect(release: str = NEWEST) -> dict[str, Any]:
    """Return how the command line of a release reads; Refused for a release that reports no samples."""
    try:
        found = load_release(release)
    except ReleaseError as error:
        raise Refused(f"--release: {error}") from None
    if found["dialect"]["runs_in"] == "host":
        raise Refused(f"--release: found {release!r}, allowed a release that reports samples: 1.0.0 or newer")
    return {**found["dialect"], "release": found["release"]}


def check(dialect: Mapping[str, Any], sample: Sample, document: Mapping[str, Any], tables: Mapping[str, str]) -> None:
    """Raise OptionRefused for a sample's TOML that the consumer would refuse.

    `dialect` is the dialect, `tables` maps cna, fusions and expression to the names of the sample's tables.
    """
    inputs = {kind: f"{_FOLDER}/{name}" for kind, name in tables.items()}
    assembly = document.get("genome_assembly")
    try:
        arguments(
            dialect,
            sample.command,
            document,
            sample_id=sample.name,
            assembly=assembly if assembly in LENGTHS else "grch38",
            inputs=Inputs(
                vcf=f"{_FOLDER}/{sample.name}.vcf.gz",
                cna=inputs.get("cna"),
                fusion=inputs.get("fusions"),
                expression=inputs.get("expression"),
                configuration=f"{_FOLDER}/{sample.name}.toml",
            ),
            refdata_dir="/bundle",
            vep_dir="/vep",
            output_dir="/outputs",
        )
    except ConfigError as error:
        # Container paths mean nothing to the user
        text = str(error).replace(f"{_FOLDER}/", "")
        raise OptionRefused(f"{text} (PCGR {dialect['release']}; --release chooses another)") from None
