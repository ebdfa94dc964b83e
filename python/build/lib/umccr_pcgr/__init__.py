"""Commands around PCGR: report samples, submit them, follow them, choose where to launch."""

__version__ = "1.0.0"
