"""`promptbench mini`."""

from __future__ import annotations

import argparse

from promptbench.config import UsageError

HELP = "draw a picture of the embedded datasets"
EXAMPLE = "promptbench mini contact-sheet -o sheet.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `promptbench mini` to its parser."""
    parser.add_argument("what", choices=("contact-sheet",), help="one row of images per dataset")
    parser.add_argument("-o", "--output", default="sheet.png", metavar="FILE", help="a PNG; default: ./sheet.png")


def execute(options: argparse.Namespace) -> int:
    """`mini contact-sheet`."""
    from promptbench.mini.sheet import contact_sheet, suite_rows

    try:
        contact_sheet(suite_rows()).save(options.output)
    except (OSError, ValueError) as error:
        raise UsageError(f"The picture cannot be written to {options.output}: {error}.") from error
    print(f"wrote {options.output}")
    return 0
