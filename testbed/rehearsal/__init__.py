"""A stand-in for PCGR: its image, a miniature bundle, and what builds them."""
