"""The long sweep that is watched: what it counts as wrong, and that an interrupted one still has a report."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import soak

SWEEP = """
import sys, time
from pathlib import Path
folder = Path(sys.argv[1]) / "results" / "base2new"
folder.mkdir(parents=True)
for name in sys.argv[2].split():
    (folder / name).write_text("{}")
print("what it says last", flush=True)
try:
    time.sleep(float(sys.argv[3]))
except KeyboardInterrupt:
    sys.exit(130)
sys.exit(int(sys.argv[4]))
"""


def looks(memory: tuple[float, float], files: tuple[int, int], count: int = 400) -> dict[str, float]:
    """The quarters of a process with these figures in the first and in the second half of its life."""
    return soak.quarters([(memory[2 * i >= count], files[2 * i >= count]) for i in range(count)])


def report(**changes: Any) -> dict[str, Any]:
    calm = {"runs done": 3, "failed": [], "exit code": 0, "interrupted": False}
    return {**calm, "processes": [looks((500.0, 500.0), (20, 20))], **changes}


def test_quarters_are_medians_of_the_second_and_the_last() -> None:
    assert soak.quarters([(float(i), i // 4) for i in range(16)]) == {
        "looks": 16,
        "MiB in the second quarter": 5.5,
        "MiB in the last quarter": 13.5,
        "open files in the second quarter": 1,
        "open files in the last quarter": 3,
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({"exit code": 130, "interrupted": True}, []),
        ({"processes": [looks((500.0, 599.0), (20, 28))]}, []),
        ({"processes": [looks((2000.0, 2199.0), (20, 20))]}, []),
        ({"processes": [looks((10.0, 900.0), (1, 90), count=40), looks((5.0, 5.0), (1, 1))]}, []),  # it starts
        ({"failed": ["a.failed.json"]}, ["1 runs failed"]),
        ({"runs done": 0}, ["no run was done"]),
        ({"exit code": 2}, ["the sweep ended with exit code 2"]),
        ({"exit code": -9, "interrupted": True}, ["the sweep was killed"]),
        ({"processes": []}, ["no process was looked at 60 times, so that growth is not known"]),
        (
            {"processes": [looks((500.0, 601.0), (20, 29))]},
            [
                "a process grew from 500 to 601 MiB, by more than 100",
                "a process grew from 20 to 29 open files, by more than 8",
            ],
        ),
        ({"processes": [looks((2000.0, 2201.0), (1, 1))]}, ["a process grew from 2000 to 2201 MiB, by more than 200"]),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], said: list[str]) -> None:
    assert soak.problems(report(**changes)) == said


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the benchmark over a process that leaves files, waits and ends; returns exit code, report and errors."""
    monkeypatch.setattr(soak, "EVERY", 0.01)
    monkeypatch.setattr(soak, "JUDGED", 8)
    monkeypatch.setattr(soak, "BOUNDS", {"percent": 10.0, "MiB": 1000.0, "open files": 100.0})  # of Python's own start
    before = signal.getsignal(signal.SIGINT)

    def run(files: str, seconds: float, code: int, minutes: float) -> tuple[int, dict[str, Any], str]:
        def command(output: Path, _: argparse.Namespace) -> list[str]:
            return [sys.executable, "-c", SWEEP, str(output), files, str(seconds), str(code)]

        monkeypatch.setattr(soak, "command", command)
        path = tmp_path / "soak.json"
        monkeypatch.setattr(sys, "argv", ["soak", "--minutes", str(minutes), "-o", str(path)])
        with pytest.raises(SystemExit) as ended:
            soak.main()
        return int(str(ended.value.code)), json.loads(path.read_text()), capsys.readouterr().err

    yield run
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc here")
def test_an_interrupted_sweep_has_a_report(sweep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell starts what is sent to the background
    code, found, said = sweep("a.json b.json", 60, 0, minutes=3 / 60)
    assert (code, said, found["problems"]) == (0, "", [])
    assert (found["runs done"], found["exit code"], found["interrupted"]) == (2, 130, True)
    assert found["minutes"] < 1 and found["processes"][0]["looks"] >= 8 and found["bounds"]


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc here")
def test_a_sweep_that_fails_is_shown(sweep: Any) -> None:
    code, found, said = sweep("a.json b.failed.json", 0.5, 3, minutes=5)
    assert (code, said) == (1, "what it says last\n")
    assert found["problems"] == ["1 runs failed", "the sweep ended with exit code 3"]
    assert (found["runs done"], found["failed"], found["interrupted"]) == (1, ["b.failed.json"], False)
