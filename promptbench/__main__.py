"""`python -m promptbench` is the `promptbench` command."""

from __future__ import annotations

import sys

from promptbench.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
