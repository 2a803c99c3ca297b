"""`promptbench plot`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from promptbench.cli.flags import OUTPUT, add_list, add_plugin
from promptbench.config import UsageError, unknown
from promptbench.show.plots.picture import KINDS, check_picture, data_path, module_of, to_text, write_picture

HELP = "draw stored results"
EXAMPLE = "promptbench plot base-new --results results/mini -o base-new.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its flags."""
    parser.add_argument("kind", metavar="KIND", help=", ".join(KINDS))
    add_selection(parser)
    add_plugin(parser)
    parser.add_argument("--data", action="store_true", help="also write the data of the picture, as .json beside it")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="a .png, .svg or .pdf file")


def add_selection(parser: argparse.ArgumentParser) -> None:
    """The flags that say what is drawn."""
    parser.add_argument("--protocol", default="", metavar="P", help="default: the kind's")
    add_list(parser, "--method", metavar="M", help="only these, in this order, and the suite's companions")
    add_list(parser, "--dataset", metavar="D", help="only these, in this order")
    add_list(parser, "--results", metavar="DIR", help=f"folders that `run` wrote to, or files; default: ./{OUTPUT}")
    parser.add_argument("--column", default="", metavar="C", help="of the protocol's table, such as new; default: H")
    parser.add_argument(
        "--baseline", default="", metavar="M", help="gain, heatmap: the suite's first companion if none"
    )
    add_list(parser, "--field", metavar="M.FIELD", help="ablation: the setting along the curve; several run together")
    parser.add_argument("--score", default="", metavar="S", help="ood: mcm, gl_mcm, ...; default: mcm")
    parser.add_argument("--run", metavar="RESULT", help="heatmap: the result file of a trained method")
    parser.add_argument(
        "--image", default="", metavar="FILE", help="heatmap: default: a test image of the run's dataset"
    )
    parser.add_argument("--class", default="", dest="class_name", metavar="NAME", help="heatmap: default: the one seen")


def execute(options: argparse.Namespace) -> int:
    """`plot`."""
    path = Path(options.output)
    check_picture(path)
    data = data_of(options)
    write_picture(data, path)
    written = [str(path)]
    if options.data:
        written.append(str(data_path(path)))
        data_path(path).write_bytes(to_text(data).encode())
    print(f"wrote {' and '.join(written)}")
    return 0


def data_of(options: argparse.Namespace) -> dict[str, Any]:
    """The data of a picture, from the flags of `add_selection` and its kind."""
    from promptbench.registry import names
    from promptbench.show.plots.source import Source, read_source

    module = module_of(options.kind)
    details = {name: getattr(options, name) for name in ("column", "baseline", "score", "image", "class_name")}
    if module.PROTOCOL:
        protocol = options.protocol or module.PROTOCOL
        if protocol not in names("protocols"):
            raise unknown("protocol", protocol, names("protocols"))
        details["fields"] = tuple(options.field or ())
        places = options.results or [OUTPUT]
        source = read_source(places, protocol, options.method or (), options.dataset or (), **details)
    elif options.run:
        source = Source(places=(Path(options.run),), **details)
    else:
        raise UsageError(f"A {options.kind} shows one trained method; name its result file with --run.")
    data: dict[str, Any] = module.data(source)
    return data
