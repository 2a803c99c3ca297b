"""The methods, one module each: `promptbench.methods.<name>`."""

if __name__ != "promptbench.methods":
    raise ImportError(
        f"This folder is promptbench.methods and cannot be imported as {__name__!r}; "
        "import promptbench.methods.<name> instead."
    )
