"""The command line over the collection's spot library."""

from umccr_pcgr._collection import find_collection

find_collection()
