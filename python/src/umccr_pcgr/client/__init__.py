"""Submit samples and follow them."""
