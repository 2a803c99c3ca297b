"""How runs end that do not end well: whatever a plugin's code raises is a recorded failure, and a run at which the
process itself ends is told of by the next call, and refused by the one after that."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import make_fake
import pytest
from shared_paths import TINY

from promptbench.cli.main import main, parser
from promptbench.config import UsageError
from promptbench.registry import add_file
from promptbench.results.result import failure_path
from promptbench.runs import run as execution
from promptbench.runs.listener import Attempt
from promptbench.runs.plan import Run, plan_runs
from promptbench.runs.session import asked_by_signal

pytestmark = pytest.mark.usefixtures("no_plugins")

PLUGIN = '''"""Leaver: it leaves where it is told to.

A. Author, "Leaver", 2026, arXiv:2601.00001.
"""

import asyncio
import os
import signal
import sys

from promptbench.methods.coop import CoOp


class Own(BaseException):
    """An exception that is no Exception."""

    def __str__(self):
        raise ValueError("it has no words")


def leave(hook):
    at, _, how = os.environ.get("PROMPTBENCH_TEST_LEAVE", "").partition(":")
    if at == hook:
        exec(how, globals())


class Leaver(CoOp):
    prepares = True

    def __init__(self, config, backbone):
        leave("init")
        super().__init__(config, backbone)

    def set_classes(self, names):
        leave("set_classes")
        super().set_classes(names)

    def prepare(self, batches):
        leave("prepare")

    def loss(self, images, labels):
        leave("loss")
        return super().loss(images, labels)

    def forward(self, images):
        leave("forward")
        return super().forward(images)

    def on_epoch_end(self, epoch, epochs):
        leave(f"epoch {epoch}")
        return super().on_epoch_end(epoch, epochs)
'''
DATASET = '''"""Leaving: its images make the process leave."""

import sys

from promptbench.datasets.folder import Folder


class Leaving(Folder):
    """Your own images, which are not shown."""

    def open(self, item):
        sys.exit(0)
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and plugins."""
    found = tmp_path_factory.mktemp("given")
    make_fake.make_folder(found / "birds")
    (found / "leaver.py").write_text(PLUGIN)
    (found / "leaving.py").write_text(DATASET)
    return found


@pytest.fixture
def call(folder: Path, tmp_path: Path) -> list[str]:
    """A sweep with a method that leaves and others that stay."""
    words = ["run", "--method", "leaver", "zeroshot", "--dataset", f"folder:{folder / 'birds'}", "--backbone", TINY]
    words += ["--protocol", "base2new"]
    words += ["--shots", "2", "--threads", "1", "--seeds", "1", "--set", "leaver.epochs=3", "leaver.batch=4"]
    return [*words, "--plugin", str(folder / "leaver.py"), "--output", str(tmp_path)]


def run_of(call: list[str]) -> Run:
    """The run of the method that leaves."""
    from promptbench.cli.flags import request_of

    options = parser().parse_args(call)
    add_file(options.plugin[0])
    return next(run for run in plan_runs(request_of(options)) if run.spec.method == "leaver")


def record_of(output: Path) -> dict[str, Any]:
    """The one failure on record."""
    (path,) = output.rglob("*.failed.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def leftovers(output: Path) -> list[str]:
    """What is neither a result nor a training, nor says what an interrupted call had to do."""
    kept = (".json", ".safetensors", ".planned")
    return [path.name for path in output.rglob("*") if path.is_file() and path.suffix not in kept]


@pytest.mark.parametrize(
    ("leave", "reason"),
    [
        ("loss:sys.exit(0)", "SystemExit: 0"),
        ("init:sys.exit()", "SystemExit"),
        ("set_classes:raise asyncio.CancelledError", "CancelledError"),
        ("prepare:raise GeneratorExit('gone')", "GeneratorExit: gone"),
        ("forward:raise Own", "Own"),
        ("epoch 0:raise Own", "Own"),
        ("epoch 1:raise StopIteration", "RuntimeError: the training ended after 2 of 3 steps, as it does where the"),
        ("epoch 2:raise StopIteration", "RuntimeError: the training ended after 3 of 3 steps, as it does where the"),
        ("loss:raise StopIteration", "RuntimeError: the training ended after 0 of 3 steps"),
    ],
)
def test_whatever_a_method_raises_is_a_recorded_failure(
    call: list[str],
    leave: str,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PROMPTBENCH_TEST_LEAVE", leave)
    assert main(call) == 1
    captured = capsys.readouterr()
    assert f"leaver birds seed 1: FAILED: {reason}" in captured.err and "| Zero-shot CLIP" in captured.out
    record = record_of(tmp_path)
    assert record["reason"].startswith(reason) and record["where"]["method"] == "leaver" and "deaths" not in record
    assert not leftovers(tmp_path) and not (tmp_path / "claims").exists()


def test_what_a_dataset_raises_is_a_recorded_failure(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMPTBENCH_CACHE", str(tmp_path / "cache"))  # else nobody opens an image
    words = ["run", "--method", "zeroshot", "--dataset", "leaving", "--set", f"leaving.root={folder / 'birds'}"]
    words += ["--backbone", TINY, "--threads", "1", "--seeds", "1", "--plugin", str(folder / "leaving.py")]
    assert main([*words, "--output", str(tmp_path)]) == 1
    reasons = [json.loads(path.read_text())["reason"] for path in tmp_path.rglob("*.failed.json")]
    assert reasons and set(reasons) == {"SystemExit: 0"}


def test_a_method_that_asks_for_ctrl_c_gets_it(
    call: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for leave in ("loss:raise KeyboardInterrupt", "forward:raise KeyboardInterrupt"):
        monkeypatch.setenv("PROMPTBENCH_TEST_LEAVE", leave)
        assert main(call) == 130
        assert "the same command goes on from here" in capsys.readouterr().err
        assert not list(tmp_path.rglob("*.failed.json")) and not leftovers(tmp_path)


def test_a_signal_that_ends_the_process_is_no_failure_of_the_run(
    call: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM ends a training as Ctrl-C does, with a code of its own; what another signal's handler raises passes."""
    of_others = signal.signal(signal.SIGTERM, signal.SIG_DFL)  # such as Ray's, where a test has started a cluster
    try:
        monkeypatch.setenv("PROMPTBENCH_TEST_LEAVE", "loss:os.kill(os.getpid(), signal.SIGTERM)")
        assert main(call) == 143 and not list(tmp_path.rglob("*.failed.json"))
    finally:
        signal.signal(signal.SIGTERM, of_others)
    before = signal.signal(signal.SIGUSR2, lambda *_: sys.exit(3))
    try:
        monkeypatch.setenv("PROMPTBENCH_TEST_LEAVE", "loss:os.kill(os.getpid(), signal.SIGUSR2)")
        with pytest.raises(SystemExit) as ended:
            main(call)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert ended.value.code == 3 and not list(tmp_path.rglob("*.failed.json")) and not leftovers(tmp_path)


@pytest.mark.parametrize("code", ["sys.exit(0)", "raise GeneratorExit"])
def test_a_plugin_that_leaves_when_it_is_imported_or_planned_is_one_line(
    code: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "gone.py"
    plugin.write_text(f'"""Gone."""\nimport sys\nfrom promptbench.method import Method\n\n{code}\n')
    assert main(["run", "--method", "gone", "--plugin", str(plugin)]) == 2
    assert main(["check-plugin", str(plugin)]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == second and first.startswith("promptbench: error: The plugin 'gone' fails to import: ")
    plugin = tmp_path / "away.py"
    plugin.write_text(
        '"""Away."""\nimport sys\nfrom promptbench.datasets.folder import Folder\n\nclass Away(Folder):\n'
        f"    def __init__(self, *_, **__):\n        {code}\n"
    )
    words = ["--dataset", "away", "--set", "away.root=x", "--method", "zeroshot", "--plugin", str(plugin)]
    assert main(["check-plugin", str(plugin), "--set", "root=x"]) == 2
    assert main(["run", *words, "--dry-run", "list", "--output", str(tmp_path / "runs")]) in (0, 2)
    said = capsys.readouterr().err.splitlines()
    assert all(f"was raised in {plugin}:7" in line for line in said) and 1 <= len(said) <= 2


def test_a_death_is_told_and_the_run_is_tried_again(
    call: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_of(call)
    (tmp_path / "claims").mkdir()
    Attempt(tmp_path, run.spec).__enter__()
    assert main(call) == 0
    told = [text for text in caplog.messages if "split into" not in text]
    assert told == [f"a process ended in the middle of {run.spec.name} (once); done again"]
    assert not leftovers(tmp_path) and not (tmp_path / "claims").exists()


def test_a_run_at_which_processes_died_twice_waits_to_be_asked_for(
    call: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, execute, done = run_of(call), execution.execute, []

    def noted(session: Any, one: Run, work: Any) -> Any:
        done.append(one.spec.method)
        return execute(session, one, work)

    monkeypatch.setattr(execution, "execute", noted)
    (tmp_path / "claims").mkdir()
    for _ in range(2):
        Attempt(tmp_path, run.spec).__enter__()
    assert main(call) == 1 and "leaver" not in done
    said = capsys.readouterr().err
    assert "leaver birds seed 1: FAILED: the process ended 2 times in the middle of this run" in said
    assert record_of(tmp_path)["deaths"] == 2 and "--retry-failed does it again" in record_of(tmp_path)["reason"]
    assert not leftovers(tmp_path) and not (tmp_path / "claims").exists()
    for same in (call, [*call, "--no-retry-failed"]):
        assert main(same) == 1 and "leaver" not in done
        assert "1 failed before; --retry-failed does them again" in capsys.readouterr().err
    assert main([*call, "--retry-failed"]) == 0 and done.count("leaver") == 1
    assert not failure_path(tmp_path, run.spec).exists()


def test_a_call_that_is_told_to_retry_counts_anew(call: list[str], tmp_path: Path) -> None:
    run = run_of(call)
    (tmp_path / "claims").mkdir()
    for _ in range(5):
        Attempt(tmp_path, run.spec).__enter__()
    assert main([*call, "--retry-failed"]) == 0
    assert not leftovers(tmp_path)


def test_deaths_are_counted_from_where_a_training_goes_on(
    call: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process died once, and dies again: behind an epoch that is stored, or before there is one."""
    run = run_of(call)
    monkeypatch.setenv("PROMPTBENCH_PARTIAL_SECONDS", "0")
    monkeypatch.setattr(Attempt, "forget", lambda self: None)  # as if nobody were left to do so
    for leave, deaths in (("epoch 0", 2), ("epoch 1", 1)):
        (tmp_path / "claims").mkdir(exist_ok=True)
        attempt = Attempt(tmp_path, run.spec)
        attempt.path.unlink(missing_ok=True)
        attempt.__enter__()
        monkeypatch.setenv("PROMPTBENCH_TEST_LEAVE", f"{leave}:sys.exit(1)")
        assert main(call) == 1
        assert attempt.deaths() == deaths


def test_a_note_behind_the_result_is_removed(call: list[str], tmp_path: Path) -> None:
    """The process died between the two."""
    assert main(call) == 0
    (tmp_path / "claims").mkdir()
    Attempt(tmp_path, run_of(call).spec).__enter__()
    assert main(call) == 0
    assert not leftovers(tmp_path) and not (tmp_path / "claims").exists()


def test_a_disk_that_takes_no_note_is_no_reason_to_stop(call: list[str], tmp_path: Path) -> None:
    run = run_of(call)
    attempt = Attempt(tmp_path / "not there", run.spec)
    with attempt:
        attempt.got_on()
        assert attempt.deaths() == 0


@pytest.mark.slow
def test_a_method_that_ends_the_process_is_not_run_a_third_time(call: list[str], tmp_path: Path) -> None:
    environment = {**os.environ, "PROMPTBENCH_TEST_LEAVE": "loss:os._exit(0)", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "promptbench", *call, "--jobs", "1"]
    said = []
    for _ in range(3):
        ended = subprocess.run(command, env=environment, capture_output=True, text=True)
        said.append((ended.returncode, ended.stderr))
    assert [code for code, _ in said] == [0, 0, 1]  # the first two are the method's own
    assert "(once); done again" in said[1][1] and "the process ended 2 times" in said[2][1]
    assert not leftovers(tmp_path)


def test_only_who_is_no_signal_of_a_child_counts_as_asked_by_one() -> None:
    """Torch says by a handler of SIGCHLD that a loader process died, which is a failure of its run."""

    def handler(*_: object) -> None:
        raise RuntimeError("a loader process died")

    for number, asked in ((signal.SIGCHLD, False), (signal.SIGUSR1, True)):
        before = signal.signal(number, handler)
        try:
            os.kill(os.getpid(), number)
            pytest.fail("nothing was raised")
        except RuntimeError as error:
            assert asked_by_signal(error) is asked
        finally:
            signal.signal(number, before)
    assert not asked_by_signal(UsageError("of nobody"))
