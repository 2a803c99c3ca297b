"""Checks that a user runs: of a plugin, of an installation."""
