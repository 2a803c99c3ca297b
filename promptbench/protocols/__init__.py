"""The protocols, one module each: `promptbench.protocols.<name>`."""
