"""Submit samples and follow them."""

from umccr_pcgr._collection import find_collection

# Options of samples are checked against the releases that the collection knows.
find_collection()
