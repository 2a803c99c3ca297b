"""The command `promptbench`."""
