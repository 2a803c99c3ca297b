"""Stored figures, ours and papers': written once, read, compared, merged."""
