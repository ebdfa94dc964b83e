"""Figures of a sample that can be counted without reference data."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean, median

from . import CHROMOSOMES
from .tables import Row
from .vcf import Calls, Variant

KINDS = ("SNV", "MNV", "insertion", "deletion", "indel", "other")
_COMPLEMENT = {"A": "T", "C": "G", "G": "C", "T": "A"}


@dataclass(frozen=True)
class Spread:
    """Five figures of a list of numbers."""

    count: int
    least: float
    median: float
    mean: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """Compute the figures; None for an empty list."""
        return cls(len(values), min(values), median(values), mean(values), max(values)) if values else None


@dataclass
class Summary:
    """Counts over the variants of a sample; `reported` holds those that pass FILTER and the chosen thresholds."""

    calls: Calls
    passed: list[Variant]
    reported: list[Variant]
    segments: list[Row] = field(default_factory=list)
    fusions: list[Row] = field(default_factory=list)
    expression: list[Row] = field(default_factory=list)
    germline: list[Row] = field(default_factory=list)

    def by_kind(self, variants: Sequence[Variant]) -> dict[str, int]:
        """Count variants by kind, including kinds that do not occur."""
        found = Counter(variant.kind for variant in variants)
        return {kind: found[kind] for kind in KINDS}

    def by_filter(self) -> list[tuple[str, int]]:
        """Count all variants by FILTER, most frequent first."""
        return Counter(variant.fields[6] for variant in self.calls.variants).most_common()

    def by_gene(self) -> list[tuple[str, int]]:
        """Count reported variants by gene, most frequent first; variants without a gene are left out."""
        return Counter(variant.gene for variant in self.reported if variant.gene).most_common()

    def by_chromosome(self) -> dict[str, list[int]]:
        """Return kind -> numbers of reported variants on each of CHROMOSOMES, only for kinds that occur."""
        found = Counter((variant.kind, variant.fields[0]) for variant in self.reported)
        table = {kind: [found[kind, chromosome] for chromosome in CHROMOSOMES] for kind in KINDS}
        return {kind: row for kind, row in table.items() if any(row)}

    def substitutions(self) -> dict[str, int]:
        """Count SNVs by base change, read on the strand of the pyrimidine."""
        found: Counter[str] = Counter()
        for variant in self.reported:
            if variant.kind == "SNV":
                pair = variant.fields[3].upper(), variant.fields[4].upper()
                if pair[0] in "AG":
                    pair = _COMPLEMENT[pair[0]], _COMPLEMENT.get(pair[1], "N")
                found[">".join(pair)] += 1
        return {change: found[change] for change in ("C>A", "C>G", "C>T", "T>A", "T>C", "T>G")}

    def depth(self) -> Spread | None:
        """Return the spread of the known depths of reported variants."""
        return Spread.of([variant.depth for variant in self.reported if variant.depth is not None])

    def fractions(self) -> list[float]:
        """Return the known allele fractions of reported variants."""
        return [variant.fraction for variant in self.reported if variant.fraction is not None]

    def copy_numbers(self) -> dict[int, tuple[int, int]]:
        """Return total copy number -> (segments, bases)."""
        result: dict[int, tuple[int, int]] = {}
        for row in self.segments:
            total = round(float(row["nMajor"])) + round(float(row["nMinor"]))
            count, bases = result.get(total, (0, 0))
            result[total] = count + 1, bases + int(row["End"]) - int(row["Start"]) + 1
        return dict(sorted(result.items()))


def reported(args: argparse.Namespace, variants: Sequence[Variant]) -> list[Variant]:
    """Return the variants that meet the depth and fraction thresholds; a missing value meets each."""
    return [variant for variant in variants if _meets(args, variant)]


def _meets(args: argparse.Namespace, variant: Variant) -> bool:
    control = None
    if variant.control_depth is not None and variant.control_fraction is not None:
        control = round(variant.control_depth * variant.control_fraction)
    lower = (
        (variant.depth, args.tumor_dp_min),
        (variant.fraction, args.tumor_af_min),
        (variant.alternative_depth, args.tumor_ad_min),
        (variant.control_depth, args.control_dp_min),
    )
    upper = ((variant.control_fraction, args.control_af_max), (control, args.control_ad_max))
    return all(value is None or bound is None or value >= bound for value, bound in lower) and all(
        value is None or bound is None or value <= bound for value, bound in upper
    )
