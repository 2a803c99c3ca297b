"""The datasets, one module each: `promptbench.datasets.<name>`."""

if __name__ != "promptbench.datasets":
    raise ImportError(
        f"This folder is promptbench.datasets and cannot be imported as {__name__!r}; "
        "if you meant Hugging Face's datasets, start Python outside promptbench's source folder."
    )
