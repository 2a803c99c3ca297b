"""`promptbench`, and `python -m promptbench`: the command, which hears Ctrl-C also while it is being imported."""

from __future__ import annotations

import signal
import sys


def command() -> int:
    """Run the command; returns the exit code."""
    try:
        from promptbench.cli.main import main

        return main()
    except KeyboardInterrupt:  # it is caught within from where there is something to lose
        print("promptbench: interrupted", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Python says much where it is interrupted while it ends


if __name__ == "__main__":
    sys.exit(command())
