"""Helpers of the tests and benchmarks; no test imports a test."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
