"""`promptbench results`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from promptbench.cli.flags import add_list, integer
from promptbench.config import UsageError, path_of

HELP = "merge, copy for a blind review, pack predictions, or keep what was learned beside results"
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

    keeping = "copy what runs learned beside their results, so that others can predict with a published folder"
    learned = actions.add_parser("learned", help=keeping, description=f"C{keeping[1:]}.")
    learned.add_argument("folder", metavar="DIR", help="a folder that `run` wrote to")
    learned.add_argument("-o", "--output", metavar="OUT", help="a folder that holds the same results; default: DIR")
    add_list(learned, "--protocol", metavar="P", help="only these; default: all")
    add_list(learned, "--seeds", type=integer(0), metavar="N", help="only these; default: all")
    add_list(learned, "--method", metavar="M", help="only these; default: all")
    learned.set_defaults(act=_keep_learned)


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


def _keep_learned(options: argparse.Namespace) -> int:
    """`results learned`: a file for each result that is in both folders and was trained."""
    from promptbench.results.result import find, find_training, learned_path, read_results
    from promptbench.training.files import copy_training

    folder, output = path_of(options.folder), path_of(options.output or options.folder)
    of = {"protocol": options.protocol, "label": options.method, "train_seed": options.seeds}
    sizes: list[int] = []
    for result in read_results(folder):
        chosen = all(wanted is None or getattr(result.spec, name) in wanted for name, wanted in of.items())
        training = find_training(folder, result) if chosen else None
        target = learned_path(output, result.spec)
        if training is not None and training != target and find(output, result.spec) is not None:
            sizes.append(copy_training(training, target))
    if not sizes:
        raise UsageError(f"Of no result that is in {output}, and asked for, is a training in {folder}.")
    print(f"wrote {len(sizes)} files, {sum(sizes) / 1e6:.2f} MB, to {output / 'learned'}")
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
