# SPDX-License-Identifier: MIT
"""Makes a conda environment from package files that are already there and checked."""

__version__ = "1.0.0"
