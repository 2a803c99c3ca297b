"""`promptbench export`."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from promptbench.cli.flags import add_trained, classes_of, run_of
from promptbench.config import UsageError, path_of

HELP = "write a trained prompt as a folder, or to the hub"
EXAMPLE = "promptbench export --run coop-0123 -o coop-dtd"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `promptbench export` to its parser."""
    add_trained(parser)
    parser.add_argument("-o", "--output", metavar="DIR", help="the folder to make")
    parser.add_argument("--to", metavar="hf://USER/NAME", help="where to upload it")
    parser.add_argument("--force", action="store_true", help="replace an earlier export in the folder")


def execute(options: argparse.Namespace) -> int:
    """`export`."""
    if not (options.output or options.to):
        raise UsageError("export needs a folder to write, -o DIR, or a place on the hub, --to hf://user/name.")
    if options.output:
        write_and_upload(options, path_of(options.output))
        return 0
    with tempfile.TemporaryDirectory(prefix="promptbench-") as folder:
        write_and_upload(options, Path(folder) / "export")
    return 0


def write_and_upload(options: argparse.Namespace, folder: Path) -> None:
    """Write the folder; upload it where that is asked for."""
    from promptbench.checkpoints import hub
    from promptbench.checkpoints.export import check_replaceable, export, local_paths
    from promptbench.checkpoints.load import FILES, RESULT, load
    from promptbench.results.spec import to_plain

    if options.to:
        hub.parse(options.to)  # before anything is computed
    check_replaceable(folder.absolute(), options.force)
    trained = load(run_of(options), device=options.device, backbone=options.backbone)
    written = export(trained, folder, classes_of(options), force=options.force)
    if options.output:
        print(f"wrote {', '.join(sorted(path.name for path in written.iterdir()))} to {folder}")
    if options.to:
        if named := local_paths(to_plain(trained.spec)):
            print(f"{RESULT} names paths of this machine: {', '.join(named)}")
        hub.upload(written, options.to, FILES)
        print(f"uploaded to {options.to}")
