"""What reading a file takes of memory and time, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import NamedTuple

_MEASURE = """
import json, os, sys, time
from pathlib import Path
from promptbench.config import UsageError
{imports}

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024

for path in map(Path, sys.argv[1:]):
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    said, before, start = "", memory("VmRSS"), time.process_time()
    try:
        {act}
    except UsageError as error:
        said = str(error)
    seconds = time.process_time() - start
    print(json.dumps([memory("VmHWM") - before, seconds, said]), flush=True)
"""


class Taken(NamedTuple):
    """What an act on a file took.

    Attributes:
        mib: Memory at its highest, over what the process had before.
        seconds: Of CPU time.
        said: The sentence of a UsageError; "" where there was none.
    """

    mib: float
    seconds: float
    said: str


def measured(act: str, files: Mapping[str, object], imports: str) -> dict[str, Taken]:
    """What an act on each of some files takes, by their names.

    Args:
        act: A statement about `path`.
        files: Their paths, by name.
        imports: What it needs, as a statement.
    """
    command = [sys.executable, "-c", _MEASURE.format(act=act, imports=imports), *map(str, files.values())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return {name: Taken(*json.loads(line)) for name, line in zip(files, done.stdout.splitlines(), strict=True)}
