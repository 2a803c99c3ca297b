"""The main act, `promptbench run` with one method on one dataset, needs few files: who follows it opens no more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

JOBS = ("--jobs", "1")  # in the process that is traced
CALL = ("run", "--method", "maple", "--protocol", "base2new", "--dataset", "mini_colours", *JOBS)
AT_MOST = 51

TRACED = '''
import inspect
import json
import sys
import threading
from pathlib import Path

import promptbench

output, *words = sys.argv[1:]
package = Path(promptbench.__file__).parent
codes = set()


def note(frame, event, argument):
    """Notes whose code runs; as it returns nothing, lines are not traced."""
    codes.add(frame.f_code)


sys.settrace(note)
threading.settrace(note)
from promptbench.cli.main import main

exit_code = main(words)
sys.settrace(None)
threading.settrace(None)

functions = {}
for code in codes:
    of_function = code.co_flags & inspect.CO_OPTIMIZED  # not the code of a module or of the body of a class
    of_comprehension = code.co_name in ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")
    path = Path(code.co_filename)
    if of_function and not of_comprehension and path.is_relative_to(package):
        functions.setdefault(path.relative_to(package).as_posix(), []).append((code.co_firstlineno, code.co_name))
Path(output).write_text(json.dumps(functions))
sys.exit(exit_code)
'''
"""A process that does the call of its arguments and writes which functions of the package were executed, by file."""


def counts(name: str) -> bool:
    """Whether a file is part of the act: no embedded set, no other command's parser, not the package's names."""
    commands = "cli/commands/"
    return (
        name != "__init__.py"
        and not name.startswith("mini/")
        and (not name.startswith(commands) or name == f"{commands}run.py")
    )


@pytest.mark.slow
def test_a_run_executes_functions_of_few_files(tmp_path: Path) -> None:
    found = tmp_path / "functions.json"
    environment = {**os.environ, "PROMPTBENCH_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", TRACED, str(found), *CALL, "--output", str(tmp_path / "runs")]
    subprocess.run(words, cwd=tmp_path, env=environment, check=True)
    functions = {name: names for name, names in json.loads(found.read_text()).items() if counts(name)}
    if "training/fit.py" not in functions or "cli/commands/run.py" not in functions:
        raise RuntimeError(f"The run was not traced: {sorted(functions)}")
    files = sorted(functions, key=lambda name: len(functions[name]))
    listed = "\n".join(f"{len(functions[name]):4} {name}" for name in files)
    assert len(files) <= AT_MOST, f"functions of {len(files)} files are executed, so many of each:\n{listed}"
