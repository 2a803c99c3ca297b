"""What the long proofs of sweeps count as wrong, and a short version of each.

Those of kills and of hostile inputs are in `tests/sweep/test_loop.py` and `test_hostile_inputs.py`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import signals
import surroundings
from shared_paths import TINY

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc here")

SHORT: dict[str, Any] = {"epochs": 6, "seed": 1, "backbone": TINY, "method": ("zeroshot", "coop"), "jobs": 1}
NOT_GOOD = """
import signal, subprocess, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
output = Path(sys.argv[1])
output.mkdir()
(output / "half.tmp").touch()
print("Traceback of promptbench", file=sys.stderr, flush=True)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
(output / "ready").touch()
time.sleep(60)
"""


def case(way: str, **changes: Any) -> signals.Case:
    return signals.Case(**{"way": way, "jobs": 1, "after": 1.0, "code": 130, "seconds": 2.0, **changes})


@pytest.fixture
def not_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a sweep that heeds no Ctrl-C and leaves all that it should not."""
    script = tmp_path / "script.py"
    script.write_text(NOT_GOOD)
    send = signals.send

    def when_it_is_ready(*arguments: Any) -> None:
        while not (tmp_path / "runs" / "ready").exists():
            time.sleep(0.01)
        send(*arguments)

    monkeypatch.setattr(signals, "PATIENCE", 1.5)
    monkeypatch.setattr(signals, "send", when_it_is_ready)
    monkeypatch.setattr(signals, "command", lambda output, *_: [sys.executable, str(script), str(output)])
    return tmp_path


@pytest.mark.parametrize(
    ("way", "said"), [("Ctrl-C", "it goes on 1.5 s after"), ("SIGTERM", "it ended with exit code 3")]
)
def test_what_a_signal_leaves_is_named(not_good: Path, way: str, said: str) -> None:
    found = case(way, after=0.01, code=None)
    assert signals.disturb(found, not_good / "runs", not_good, argparse.Namespace(), 0.1)
    assert found.wrong[0] == said and found.wrong[1].startswith("process ") and "sleep(60)" in found.wrong[1]
    assert found.wrong[2:] == ["it said: Traceback of promptbench\n", "it left 1 halves of files"]
    assert signals.survivors(not_good) == []


def test_a_call_that_goes_on_otherwise_is_named(not_good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "carry_out", lambda *_: None)
    output = not_good / "runs"
    (output / "claims").mkdir(parents=True)
    (output / "a.json").write_text("{}")
    (output / "x.partial").touch()
    found = list(signals.afterwards(output, not_good, argparse.Namespace(), {"b.json": b"{}"}))
    left = ["left over: x.partial", "the folder of claims is left over"]
    assert found == ["a.json is different", "b.json is different", *left]


def test_signals_are_counted_by_kind() -> None:
    found = signals.summary([case("Ctrl-C"), case("Ctrl-C", seconds=5.0, code=0), case("SIGHUP", wrong=["it hung"])])
    assert found["instants"] == 3 and [one["wrong"] for one in found["violations"]] == [["it hung"]]
    assert found["signals"]["Ctrl-C, 1 at once"] == {
        "instants": 2,
        "exit codes": [0, 130],
        "halves of files": 0,
        "median seconds to end": 3.5,
        "most seconds to end": 5.0,
    }


@pytest.mark.slow
def test_a_sweep_that_gets_a_signal_goes_on_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "WAYS", ("Ctrl-C twice", "SIGTERM"))
    options = argparse.Namespace(**{**SHORT, "method": ("coop",), "instants": 2, "jobs": [1]})
    found = signals.summary(list(signals.disturbed(tmp_path, options)))
    assert found["violations"] == [] and list(found["signals"]) == ["Ctrl-C twice, 1 at once", "SIGTERM, 1 at once"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> surroundings.Home:
    """A sweep that nobody disturbs."""
    return surroundings.Home(tmp_path_factory.mktemp("home"), argparse.Namespace(**SHORT))


@pytest.mark.slow
def test_neither_a_hash_seed_nor_a_locale_changes_a_result(
    home: surroundings.Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surroundings, "TEXTS", [{"PYTHONHASHSEED": "1", "LC_ALL": "C"}])
    figures, wrong = surroundings.text(home)
    assert wrong == [] and figures["tried"] == ["PYTHONHASHSEED=1 LC_ALL=C"]


@pytest.mark.slow
def test_a_run_that_takes_too_much_memory_fails_alone(home: surroundings.Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "LIMITS", ("limit",))
    figures, wrong = surroundings.memory(home)
    assert wrong == [] and figures["limit"]["failed"] == 1


@pytest.mark.slow
def test_runs_with_other_threads_are_others(home: surroundings.Home) -> None:
    figures, wrong = surroundings.threads(home)
    assert wrong == [] and figures["files"] == 2 * figures["runs of each"] == 6


@pytest.mark.slow
def test_a_clock_that_is_set_forward_costs_a_killed_sweep_nothing(home: surroundings.Home) -> None:
    figures, wrong = surroundings.after(home, home.folder / "forward", -5)
    assert wrong == [] and list(home.differs(home.folder / "forward")) == [] and figures["files dated"] > 3


def test_what_is_different_is_named(home: surroundings.Home, tmp_path: Path) -> None:
    (tmp_path / "claims").mkdir()
    (tmp_path / "more.json").write_text("{}")
    found = list(home.differs(tmp_path))
    assert found[-1] == f"{tmp_path.name}: claims are left over" and len(found) == len(home.expected) + 2
    assert f"{tmp_path.name}: more.json is different" in found
    ended = subprocess.CompletedProcess([], 1, "", "Traceback\n")
    assert [sentence.partition(":")[2][:12] for sentence in home.ended_well("it", ended, 2)] == [
        " exit code 1",
        " a traceback",
        " no sentence",
    ]


def test_a_claim_that_is_gone_under_its_owner_is_seen(tmp_path: Path) -> None:
    (tmp_path / "claims").mkdir()
    path = tmp_path / "claims" / "x.claim"
    with path.open("w"):
        assert list(surroundings.lost([os.getpid()])) == []
        path.unlink()
        assert list(surroundings.lost([os.getpid()])) == [(os.getpid(), "x.claim")]
    assert surroundings.set_clock(path, 1) is False
