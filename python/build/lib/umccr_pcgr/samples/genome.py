"""Lengths of the primary chromosomes, by which a VCF of the other assembly is recognised.

Source: assembly reports of the Genome Reference Consortium at NCBI, GCF_000001405.25 (GRCh37.p13) and GCF_000001405.40
(GRCh38.p14), column "Sequence-Length"; patches never change a primary chromosome.
"""

from __future__ import annotations

CHROMOSOMES = (*(str(number) for number in range(1, 23)), "X", "Y")
DISPLAY = {"grch37": "GRCh37", "grch38": "GRCh38"}

# fmt: off
_GRCH37 = (
    249250621, 243199373, 198022430, 191154276, 180915260, 171115067, 159138663, 146364022, 141213431, 135534747, 135006516, 133851895,
    115169878, 107349540, 102531392, 90354753, 81195210, 78077248, 59128983, 63025520, 48129895, 51304566, 155270560, 59373566,
)
_GRCH38 = (
    248956422, 242193529, 198295559, 190214555, 181538259, 170805979, 159345973, 145138636, 138394717, 133797422, 135086622, 133275309,
    114364328, 107043718, 101991189, 90338345, 83257441, 80373285, 58617616, 64444167, 46709983, 50818468, 156040895, 57227415,
)
# fmt: on
LENGTHS: dict[str, dict[str, int]] = {
    "grch37": dict(zip(CHROMOSOMES, _GRCH37, strict=True)),
    "grch38": dict(zip(CHROMOSOMES, _GRCH38, strict=True)),
}


def primary(name: str) -> str | None:
    """The primary chromosome that `name` (with or without ``chr``) means, else None."""
    bare = name[3:] if name[:3].lower() == "chr" else name
    return bare if bare in LENGTHS["grch38"] else None
