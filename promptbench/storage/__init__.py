"""Files that several processes share: whole or not at all, claimed, cached, versioned."""
