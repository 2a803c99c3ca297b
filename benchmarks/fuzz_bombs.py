"""Opens one image, and prints as JSON what was said of it and how much memory it took.

A process of its own each time: the most memory that a process ever had is all that the system tells.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from promptbench.config import UsageError
from promptbench.decoding import open_image


def main(path: Path) -> None:
    """Open it, and say so."""
    said, before = "", most_mib()
    try:
        open_image(path)
    except UsageError as error:
        said = str(error)
    print(json.dumps({"mib": round(most_mib() - before, 1), "said": said}))


def most_mib() -> float:
    """The most memory that this process had since it was started, MiB; `getrusage` counts that of its parent too."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]))
