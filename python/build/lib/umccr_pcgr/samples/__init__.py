"""The contract of samples: names, events, object labels, what a tarball may hold. Standard library only."""
