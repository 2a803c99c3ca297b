"""`promptbench plot`."""

from __future__ import annotations

import argparse

from promptbench.cli.flags import add_picture, add_plugin, picture_of
from promptbench.config import path_of
from promptbench.show.plots.picture import (
    FORMATS,
    KINDS,
    caption_of,
    check_picture,
    data_path,
    paragraph,
    to_text,
    write_picture,
)

HELP = "draw stored results"
EXAMPLE = "promptbench plot base-new --results results/mini -o base-new.pdf --width page --highlight maple"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `promptbench plot` to its parser."""
    kinds = [f"  {kind:<21}{said}" for kind, said in KINDS.items()]
    parser.description = "\n".join(["Draw stored results. KIND is what to show, from which results:", "", *kinds])
    parser.add_argument("kind", metavar="KIND", help="one of the above")
    add_picture(parser)
    add_plugin(parser)
    data = "also write figures and caption, as .json beside the picture"
    parser.add_argument("--data", action="store_true", help=data)
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help=f"ends in .{', .'.join(FORMATS)}")


def execute(options: argparse.Namespace) -> int:
    """Draw, and print the caption, which is not part of the picture."""
    path = path_of(options.output)
    check_picture(path)
    data = picture_of(options)
    write_picture(data, path)
    written = [str(path)]
    if options.data:
        written.append(str(data_path(path)))
        data_path(path).write_bytes(to_text(data).encode())
    print(f"wrote {' and '.join(written)}\n")
    print(paragraph(caption_of(data)))
    return 0
