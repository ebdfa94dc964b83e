"""A rehearsal of PCGR/CPSR 2.3.2: commands that look the same from outside, without clinical content.

The values below are those that PCGR 2.3.2 hard-codes in its pcgr_vars.py, except NOTICE.
"""

from __future__ import annotations

from typing import Final

NOTICE: Final = "REHEARSAL - not a clinical report"
PCGR_VERSION: Final = "2.3.2"
CPSR_VERSION: Final = "2.3.0"  # r-cpsr of the 2.3.2 image; what `cpsr --version` prints
BUNDLE: Final = "20260620"
VEP: Final = "115"
VEP_ASSEMBLY: Final = {"grch37": "GRCh37", "grch38": "GRCh38"}
GENCODE: Final = {"grch37": 19, "grch38": 49}
EXOME_MB: Final = 34.0
HTML_LIMIT: Final = 750_000  # PCGR writes no HTML for this many variants or more
CHROMOSOMES: Final = (*(str(number) for number in range(1, 23)), "X", "Y")
METADATA: Final = ("gene", "phenotype", "biomarker", "drug", "gwas", "hotspot", "other")
SITES: Final = (
    "Any",
    "Adrenal Gland",
    "Ampulla of Vater",
    "Biliary Tract",
    "Bladder/Urinary Tract",
    "Bone",
    "Breast",
    "Cervix",
    "CNS/Brain",
    "Colon/Rectum",
    "Esophagus/Stomach",
    "Eye",
    "Head and Neck",
    "Kidney",
    "Liver",
    "Lung",
    "Lymphoid",
    "Myeloid",
    "Ovary/Fallopian Tube",
    "Pancreas",
    "Peripheral Nervous System",
    "Peritoneum",
    "Pleura",
    "Prostate",
    "Skin",
    "Soft Tissue",
    "Testis",
    "Thymus",
    "Thyroid",
    "Uterus",
    "Vulva/Vagina",
)
