"""`promptbench results`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from promptbench.config import UsageError, path_of

HELP = "merge the results of several folders, copy them for a blind review, or pack predictions"
MERGE = "merge the results of several folders into one"
EXAMPLE = "promptbench results merge runs-of-anna runs-of-ben -o runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its action and the flags of that."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    merge = actions.add_parser("merge", help=MERGE, description=f"M{MERGE[1:]}.", epilog=f"Example: {EXAMPLE}")
    merge.add_argument("folders", nargs="+", metavar="DIR", help="folders that `run` wrote to")
    merge.add_argument(
        "-o", "--output", required=True, metavar="OUT", help="may be one of them; what is in it is never replaced"
    )
    merge.add_argument(
        "--prefer", default="", choices=("first", "newest"), help="where numbers of a run differ; default: copy neither"
    )

    packing = "compress the predictions of a folder, such as for sharing them"
    pack = actions.add_parser("pack", help=packing, description=f"C{packing[1:]}.")
    pack.add_argument("folder", metavar="DIR", help="a folder that `run --save-predictions` wrote to")
    half = "round logits to half precision: half the size, accuracy stays exact, calibration nearly"
    pack.add_argument("--half", action="store_true", help=half)
    pack.set_defaults(act=_pack)

    blind = "copy result files without hosts, users, commits and paths, for a blind review"
    anonymise = actions.add_parser("anonymise", help=blind, description=f"C{blind[1:]}.")
    anonymise.add_argument("places", nargs="+", metavar="DIR", help="folders that `run` wrote to, or files")
    anonymise.add_argument("-o", "--output", required=True, metavar="OUT", help="a folder; what is in it stays")
    anonymise.set_defaults(act=_anonymise)
    merge.set_defaults(act=_merge)


def execute(options: argparse.Namespace) -> int:
    """Carry out `promptbench results`."""
    return int(options.act(options))


def _pack(options: argparse.Namespace) -> int:
    """`results pack`."""
    from promptbench.results.predictions import pack_predictions

    paths = sorted((path_of(options.folder) / "predictions").rglob("*.safetensors"))
    if not paths:
        raise UsageError(f"There are no predictions to pack in {options.folder}.")
    before = _megabytes(paths)
    packed = [pack_predictions(path, options.half) for path in paths]
    print(f"packed {len(packed)} files, {before:.1f} MB before and {_megabytes(packed):.1f} MB now")
    return 0


def _anonymise(options: argparse.Namespace) -> int:
    """`results anonymise`."""
    from promptbench.results.anonymous import write_anonymous

    written = write_anonymous(options.places, options.output)
    print(f"wrote {len(written)} results to {options.output}; their predictions and trainings were not copied")
    return 0


def _megabytes(paths: list[Path]) -> float:
    return sum(path.stat().st_size for path in paths) / 1e6


def _merge(options: argparse.Namespace) -> int:
    """`results merge`: 1 where something was left out."""
    from promptbench.results.merge import merge

    merged = merge(options.folders, options.output, options.prefer)
    for line in (*merged.settled, *merged.left_out):
        print(f"promptbench: {' '.join(line.splitlines())}", file=sys.stderr)
    written = ", ".join(f"{count} {kind}" for kind, count in merged.written.items())
    left_out = f"; left out: {len(merged.left_out)}, see above" if merged.left_out else ""
    print(f"wrote {written} to {options.output}; {merged.known} runs were there already{left_out}")
    return 1 if merged.left_out else 0
