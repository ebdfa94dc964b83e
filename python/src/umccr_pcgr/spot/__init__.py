"""The command line over the collection's spot library."""
