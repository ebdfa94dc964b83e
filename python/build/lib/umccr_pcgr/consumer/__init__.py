"""Consumer of sample tarballs: claim, fetch, unpack, check, run PCGR or CPSR, pack, publish."""
