"""`promptbench plot`."""

from __future__ import annotations

import argparse

from promptbench.cli.flags import add_picture, add_plugin, picture_of
from promptbench.config import path_of
from promptbench.show.plots.picture import KINDS, check_picture, data_path, to_text, write_picture

HELP = "draw stored results"
EXAMPLE = "promptbench plot base-new --results results/mini -o base-new.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `promptbench plot` to its parser."""
    parser.add_argument("kind", metavar="KIND", help=", ".join(KINDS))
    add_picture(parser)
    add_plugin(parser)
    parser.add_argument("--data", action="store_true", help="also write the data of the picture, as .json beside it")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="a .png, .svg or .pdf file")


def execute(options: argparse.Namespace) -> int:
    """`plot`."""
    path = path_of(options.output)
    check_picture(path)
    data = picture_of(options)
    write_picture(data, path)
    written = [str(path)]
    if options.data:
        written.append(str(data_path(path)))
        data_path(path).write_bytes(to_text(data).encode())
    print(f"wrote {' and '.join(written)}")
    return 0
