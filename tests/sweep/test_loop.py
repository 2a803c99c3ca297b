"""Sweeps: processes share the runs of a folder; what happens where one is killed or nothing can be written."""

from __future__ import annotations

import argparse
import errno
import gc
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import make_fake
import pytest
from shared_paths import TINY

from promptbench.cli.flags import place_of, request_of
from promptbench.cli.main import main, parser
from promptbench.cli.text import position
from promptbench.config import UsageError
from promptbench.results.result import failure_path, read_results
from promptbench.runs import run as execution
from promptbench.runs.listener import Silent
from promptbench.runs.plan import plan_runs
from promptbench.storage.claims import Claims, Holder, born, holders
from promptbench.sweep import loop
from promptbench.sweep import loop as sweep_job
from promptbench.sweep.executors import local
from promptbench.sweep.loop import room_here
from promptbench.sweep.status import PLANNED
from promptbench.training.numerics import peak_memory

SHORT = ("--set", "coop.epochs=2", "coop.batch=4")
PLUGIN = '''"""Fatal: its process dies.

A. Author, "Fatal", 2026, arXiv:2601.00001.
"""

import os

from promptbench.method import Method


class Fatal(Method):
    trains = False

    def forward(self, images):
        os.kill(os.getpid(), 9)
'''


@pytest.fixture(autouse=True)
def _soon(no_plugins: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "LOOK_AGAIN", 0.05)


@pytest.fixture(scope="module")
def what(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Flags of a run that takes a moment."""
    folder = tmp_path_factory.mktemp("images") / "birds"
    make_fake.make_folder(folder)
    what = ("--protocol", "base2new", "--dataset", f"folder:{folder}")
    return ("--backbone", TINY, *what, "--shots", "2", "--threads", "1", "--seeds", "1")


@pytest.fixture(scope="module")
def whole(what: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A sweep that nobody disturbs, in one process, and its numbers."""
    output = tmp_path_factory.mktemp("whole")
    assert main(["run", "--method", "zeroshot", "coop", *what, *SHORT, "--output", str(output)]) == 0
    return output, numbers(output)


def numbers(output: Path) -> dict[str, Any]:
    """What must be equal: result files without costs and times, by name."""
    found = {}
    for path in (output / "results").rglob("*.json"):
        record = json.loads(path.read_text())
        found[path.name] = {key: record[key] for key in record if key not in ("cost", "created", "commit")}
    return found


def leftovers(output: Path) -> list[str]:
    kept = (".json", ".safetensors", PLANNED)  # the last: what a call that was interrupted had to do, for `status`
    return [path.name for path in output.rglob("*") if path.is_file() and path.suffix not in kept]


@pytest.mark.slow
def test_two_at_once_give_the_numbers_of_one(
    whole: tuple[Path, Any],
    what: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sweep_job, "DEATHS", 1)  # a second one would take another start of a process
    plugin = tmp_path / "fatal.py"
    plugin.write_text(PLUGIN)
    call = ["run", "--method", "fatal", "coop", *what, *SHORT, "--plugin", str(plugin)]
    output = tmp_path / "runs"
    assert main([*call, "--jobs", "2", "--output", str(output)]) == 1
    captured = capsys.readouterr()
    told = re.search(r"fatal birds seed 1: FAILED: the process (.*)", captured.err)
    by = ("at this run ended with signal 9 (SIGKILL), 1 times", "ended 1 times in the", "ended 2 times in the")
    assert told and told[1].startswith(
        by
    )  # by the parent, or by a worker, which does it once more: whoever looks first
    assert "[4/4]" in captured.err and "1 of 4 runs failed" in captured.err and "| CoOp" in captured.out
    found = numbers(output)
    (failure,) = [name for name in found if name.endswith(".failed.json")]
    assert found.pop(failure)["where"]["method"] == "fatal"
    assert found == whole[1] and not leftovers(output) and not (output / "claims").exists()
    assert main([*call, "--no-retry-failed", "--output", str(output)]) == 1  # else it would kill the tests
    assert "1 failed before; --retry-failed does them again" in capsys.readouterr().err
    assert main(["status", "--output", str(output)]) == 0
    text = capsys.readouterr().out
    assert "3 done, 1 failed, 0 running" in text and "base2new/birds/fatal" in text and "SIGKILL" in text


def test_a_call_killed_behind_its_last_result_leaves_nothing_for_good(
    whole: tuple[Path, Any], what: tuple[str, ...], tmp_path: Path
) -> None:
    output = tmp_path / "runs"
    shutil.copytree(whole[0], output)
    claims = (
        "import os, pathlib\n"
        "from promptbench.storage.claims import Claims\n"
        f"Claims(pathlib.Path({str(output / 'claims')!r})).take('call-dead', {{'kind': 'call', 'runs': []}})\n"
        "os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", claims]).returncode == -signal.SIGKILL
    assert leftovers(output) == ["call-dead.claim"]
    assert main(["run", "--method", "zeroshot", "coop", *what, *SHORT, "--output", str(output)]) == 0
    assert not leftovers(output) and not (output / "claims").exists() and numbers(output) == whole[1]


@pytest.mark.slow
def test_a_script_that_starts_a_sweep_is_not_run_again_in_its_workers(what: tuple[str, ...], tmp_path: Path) -> None:
    words = ["run", "--method", "zeroshot", *what, "--jobs", "2", "--output", "runs"]
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from promptbench.cli.main import main\n"
        "with Path('begun').open('a') as file:\n"
        "    file.write('once\\n')\n"
        f"assert main({words!r}) == 0\n"
    )
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "begun").read_text() == "once\n"
    assert len(numbers(tmp_path / "runs")) == 2 and "[2/2]" in done.stderr


def test_a_run_that_ends_its_processes_is_tried_twice(what: tuple[str, ...], tmp_path: Path) -> None:
    options = parser().parse_args(["run", "--method", "coop", *what, *SHORT, "--output", str(tmp_path)])
    request = request_of(options)
    (*_, run) = runs = plan_runs(request)
    names = tuple(run.spec.name for run in runs)
    found = sweep_job.Sweep(sweep_job.Job(request.asked, place_of(options, tmp_path, "cpu"), names, {}, ()), runs)
    found.died(run.spec.name, sweep_job.ended_with(-9), "its last words")
    assert run.spec.name in found.unfinished() and not found.failed()
    found.died(run.spec.name, sweep_job.ended_with(-9), "its last words")
    assert run.spec.name not in found.unfinished() and found.failed() == [run.spec.name]
    record = json.loads(failure_path(tmp_path, run.spec).read_text())
    assert "ended with signal 9 (SIGKILL), 2 times" in record["reason"] and record["traceback"] == "its last words"
    for _ in range(sweep_job.UNEXPLAINED - 1):
        found.died("", sweep_job.ended_with(1), "")
    with pytest.raises(UsageError, match="end with exit code 1 before they do anything: no torch"):
        found.died("", sweep_job.ended_with(1), "Traceback\nno torch")


@pytest.mark.slow
def test_ctrl_c_ends_the_workers_too(what: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "--method", "coop", *what, "--jobs", "2", "--output", str(tmp_path), "--set", "coop.epochs=100000"]
    pids: list[int] = []

    def interrupt() -> None:
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline:
            time.sleep(0.1)
            if len(list(tmp_path.rglob("results/**/*.json"))) == 2 and training_claims(tmp_path):
                break
        pids.extend(holder.pid for holder in holders(tmp_path / "claims") if holder.about["kind"] == "run")
        os.kill(os.getpid(), signal.SIGINT)

    heard = signal.signal(signal.SIGINT, signal.default_int_handler)
    sender = threading.Thread(target=interrupt)
    sender.start()
    try:
        code = main([*words, "coop.batch=4"])
    finally:
        sender.join()
        signal.signal(signal.SIGINT, heard)
    said = capsys.readouterr().err
    assert code == 130 and said.rstrip().endswith("goes on from here") and "Traceback" not in said
    assert pids and not any(map(born, pids))
    assert len(read_results(tmp_path)) == 2 and not leftovers(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not local.FORKS, reason="workers are not forked here")
def test_ctrl_c_does_not_reach_what_workers_are_forked_from() -> None:
    """A terminal sends it to all processes of a call, the one included that is still importing."""
    code = (
        "import multiprocessing, os, signal, time\n"
        "from multiprocessing import forkserver\n"
        "from promptbench.sweep.executors.local import Local\n"
        "Local().prepare('cpu')\n"
        "time.sleep(0.3)\n"
        "os.kill(forkserver._forkserver._forkserver_pid, signal.SIGINT)\n"
        "process = multiprocessing.get_context('forkserver').Process(target=print, args=('here',))\n"
        "process.start()\n"
        "process.join()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("here\n", "")


def training_claims(output: Path) -> list[Path]:
    return [path for path in output.glob("claims/*.claim") if b'"training"' in path.read_bytes()]


def test_a_run_of_another_process_is_left_to_it(
    what: tuple[str, ...], whole: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one holds coop's training; it stores what it learned while we wait."""
    (training,) = (whole[0] / "trainings").iterdir()
    other = Claims(tmp_path / "claims")
    claim = other.take(training.stem, {"kind": "training"})
    assert claim is not None
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            (tmp_path / "trainings").mkdir()
            shutil.copy(training, tmp_path / "trainings")
            claim.release()

    monkeypatch.setattr(loop.time, "sleep", wait)
    monkeypatch.setattr("promptbench.training.fit.fit", lambda *_, **__: pytest.fail("it was trained twice"))
    assert main(["run", "--method", "coop", *what, *SHORT, "--output", str(tmp_path)]) == 0
    other.close()
    assert len(waits) >= 3 and numbers(tmp_path) == whole[1] and not leftovers(tmp_path)


@pytest.mark.slow
def test_a_failure_of_another_process_is_counted_and_not_repeated(
    what: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    execute, at = execution.execute, []

    def fail(session: Any, run: Any, work: Any) -> Any:
        at.append(run.spec.label)
        if run.spec.method == "coop":
            raise RuntimeError("it broke")
        return execute(session, run, work)

    monkeypatch.setattr(execution, "execute", fail)
    call = ["run", "--method", "coop", *what, *SHORT, "--output", str(tmp_path)]
    assert main(call) == 1 and at.count("coop") == 1
    assert main(call) == 1 and at.count("coop") == 2  # a later call tries again
    assert main([*call, "--no-retry-failed"]) == 1 and at.count("coop") == 2
    with monkeypatch.context() as patch:
        patch.setattr(loop, "failures_on_record", later(loop.failures_on_record))
        assert main(call) == 1 and at.count("coop") == 2
    assert "the run failed" in capsys.readouterr().err


def later(failures_on_record: Any) -> Any:
    """As if there had been no failure when the call began."""
    calls = []

    def answer(*arguments: Any) -> dict[str, int]:
        calls.append(arguments)
        return failures_on_record(*arguments) if len(calls) > 1 else {}

    return answer


@pytest.mark.slow
def test_a_full_disk_ends_the_call_in_one_sentence_and_loses_nothing(
    what: tuple[str, ...],
    whole: tuple[Path, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PROMPTBENCH_PARTIAL_SECONDS", "0")
    call = ["run", "--method", "zeroshot", "coop", *what, *SHORT, "--output", str(tmp_path)]
    fsync, chance, stops = os.fsync, random.Random(1), 0
    before: dict[str, bytes] = {}
    for _ in range(20):
        if_full = chance.randint(1, 3)  # the write that finds the disk full
        writes = iter(range(1, 1000))

        def full(descriptor: int, writes: Any = writes, if_full: int = if_full) -> None:
            if next(writes) >= if_full:
                raise OSError(errno.ENOSPC, "No space left on device")
            fsync(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            done = main(call)
        said = capsys.readouterr().err.splitlines()
        after = {path.name: path.read_bytes() for path in (tmp_path / "results").rglob("*.json")}
        assert before.items() <= after.items() and not [name for name in after if "failed" in name]
        assert all(name.endswith((".json", ".safetensors", ".partial")) for name in map(str, tmp_path.rglob("*.*")))
        before = after
        if done == 0:
            break
        stops += 1
        assert done == 2 and "No space left on device" in said[-1] and said[-1].startswith("promptbench: error: ")
    else:
        assert main(call) == 0
    assert stops >= 2 and numbers(tmp_path) == whole[1] and not leftovers(tmp_path)


def test_a_folder_that_turns_read_only_ends_the_call(tmp_path: Path) -> None:
    ours = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "trainings" / "x"))
    image = PermissionError(errno.EACCES, "Permission denied", "/data/cat.png")
    assert loop.cannot_write(ours, tmp_path) and not loop.cannot_write(image, tmp_path)
    assert not loop.cannot_write(RuntimeError("it broke"), tmp_path)
    for code in (errno.EROFS, errno.EDQUOT):
        assert loop.cannot_write(OSError(code, os.strerror(code)), tmp_path)
    try:
        raise ValueError("said plainly") from OSError(errno.ENOSPC, "No space left on device")
    except ValueError as error:
        assert loop.cannot_write(error, tmp_path)


def test_status_shows_what_others_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results" / "base2new" / "dtd"
    results.mkdir(parents=True)
    for name in ("coop-1", "maple-1"):
        (results / f"{name}.json").write_text("{}")
    (results / "vpt-1.failed.json").write_text(json.dumps({"reason": "the loss became nan"}))
    about = {"kind": "run", "run": "base2new/dtd/coop-2", "seeds": [2, 2], "epochs": 50}
    with Claims(tmp_path / "claims") as claims:
        names = ["base2new/dtd/coop-1", "base2new/dtd/coop-2", "base2new/dtd/coop-3", "base2new/dtd/coop-4"]
        call, run = claims.take("call-1", {"kind": "call", "runs": names}), claims.take("2", about)
        assert call is not None and run is not None
        run.progress = {"done": 30, "total": 100}
        run.beat()
        began = time.monotonic()
        assert main(["status", "--output", str(tmp_path)]) == 0
        took = time.monotonic() - began
    text = capsys.readouterr().out
    assert re.search(r"2 done, 1 failed, 1 running, 2 to do, about [\d.]+ s left", text) and took < 5
    who = f"{os.uname().nodename}, process {os.getpid()}"
    assert re.search(f"base2new/dtd/coop seed 2  epoch 16 of 50  {who}  for [\\d.]+ s", text)
    assert "base2new/dtd/vpt 1: the loss became nan" in text
    assert main(["status", "--output", str(tmp_path / "none")]) == 2
    assert "There is no folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("epochs", "done", "says"),
    [
        (50, 30, "epoch 16 of 50"),
        (0, 30, "step 30 of 100"),
        (0, 100, "evaluating"),
        (50, 100, "evaluating"),
        (50, 0, ""),
        (None, 30, ""),
    ],
)
def test_status_counts_epochs_or_steps(epochs: int | None, done: int, says: str) -> None:
    progress = {"done": done, "total": 100}
    holder = Holder(name="1", about={"epochs": epochs}, host="", pid=1, since=0.0, progress=progress, alive=True)
    assert position(holder) == says


@pytest.mark.slow
def test_status_imports_no_torch_and_is_fast_on_many_results(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "base2new" / "dtd"
    folder.mkdir(parents=True)
    for number in range(2000):
        (folder / f"coop-{number}.json").write_text("{}")
    code = (
        "import sys, time; from promptbench.cli.main import main; began = time.process_time()\n"
        f"assert main(['status', '--output', {str(tmp_path)!r}]) == 0\n"
        "assert not {'torch', 'numpy', 'pandas', 'rich', 'open_clip'} & set(sys.modules)\n"
        "print(time.process_time() - began)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "2000 done" in done.stdout and float(done.stdout.splitlines()[-1]) < 1.0


def test_jobs_are_capped_by_memory(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    used = peak_memory("cpu") * 1.5
    monkeypatch.setattr(local, "free_memory", lambda: 3.5 * used)
    assert local.places(2, "cpu", 1) == (2, []) and not caplog.messages
    assert local.places(8, "cpu", 1, asked=False) == (3, []) and not caplog.messages
    assert local.places(8, "cpu", 1) == (3, [])
    assert "--jobs 8: a run takes about" in caplog.text and "3 at once" in caplog.text
    caplog.clear()
    monkeypatch.setattr(local, "free_memory", lambda: float("inf"))  # as where the system does not say
    assert local.places(8, "cpu", 1) == (8, [])
    monkeypatch.setattr(local, "peak_memory", lambda device: 0)
    assert local.places(8, "cpu", 1) == (8, []) and not caplog.messages
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert local.places(8, "cuda", 2) == (4, ["2", "5"])


def test_runs_go_at_once_where_cores_have_room_unless_one_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: Any = [SimpleNamespace(spec=SimpleNamespace(threads=threads)) for threads in (1, 2)]
    monkeypatch.setattr(loop, "available_cores", lambda: 8)
    assert room_here(runs, "cpu") == 4 and room_here(runs[:1], "cpu") == 8 and room_here(runs, "cuda") == 1
    monkeypatch.setattr(loop, "available_cores", lambda: 1)
    assert room_here(runs, "cpu") == 1
    monkeypatch.setattr(loop, "room_here", lambda *_: 4)
    assert loop.several(runs, "cpu", None) and loop.several(runs, "cpu", 2)
    assert not loop.several(runs, "cpu", 1) and not loop.several(runs[:1], "cpu", None)


def test_what_was_imported_before_the_first_run_is_not_looked_through_for_garbage(tmp_path: Path) -> None:
    request = request_of(parser().parse_args(["run", "--method", "zeroshot"]))
    gc.disable()
    try:
        loop.run_all(loop.Session(loop.Place(tmp_path), request.suite), [], Silent())
        assert gc.isenabled() and gc.get_freeze_count() > 100_000
        main(["list", "suites"])
        assert gc.get_freeze_count() < 10_000  # a process that goes on after a command looks everywhere again
    finally:
        gc.unfreeze()
        gc.enable()


def test_of_runs_at_once_those_that_train_begin_first() -> None:
    words = ["run", "--method", "coop", "--dataset", "mini_fabrics", "mini_colours", "--seeds", "1", "2"]
    runs = plan_runs(request_of(parser().parse_args(words)))
    ordered = [(run.spec.method, run.spec.dataset) for run in loop.neighbours(runs)]
    assert [method for method, _ in ordered] == ["coop"] * 4 + ["zeroshot"] * 8
    assert [dataset for _, dataset in ordered[:4]] == ["mini_fabrics", "mini_colours"] * 2  # as they were asked for


@pytest.mark.slow
def test_the_command_leaves_no_core_idle(what: tuple[str, ...], whole: tuple[Path, Any], tmp_path: Path) -> None:
    """By itself it does two runs in two processes, and their numbers are those of one after the other."""
    words = ["run", "--method", "zeroshot", "coop", *what, *SHORT, "--output", str(tmp_path)]
    code = (
        "import sys\n"
        "from promptbench.sweep import loop\n"
        "loop.available_cores = lambda: 2\n"
        "from promptbench.sweep.executors.local import Workers\n"
        "start = Workers.start\n"
        "Workers.start = lambda self, jobs: (print('at once:', jobs), start(self, jobs))[1]\n"
        "from promptbench.cli.main import main\n"
        f"sys.exit(main({words!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "at once: 2" in done.stdout
    assert numbers(tmp_path) == whole[1]


@pytest.mark.slow
def test_a_sweep_that_is_killed_again_and_again_ends_with_the_same_files(tmp_path: Path) -> None:
    import kill

    options = {"kills": 3, "jobs": 1, "epochs": 6, "seed": 1, "backbone": TINY, "method": ("coop",)}
    found = kill.compare(tmp_path, argparse.Namespace(**options))
    assert found["kills"] == 3 and found["files compared"] >= 4
    assert found["different"] == [] and found["left over"] == []


def test_status_says_what_an_interrupted_call_left_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["base2new/birds/coop-1", "base2new/birds/coop-2", "base2new/birds/coop-3"]
    with pytest.raises(KeyboardInterrupt), loop.announced(tmp_path, names):
        (tmp_path / "results" / "base2new" / "birds").mkdir(parents=True)
        (tmp_path / "results" / f"{names[0]}.json").write_text("{}")
        (tmp_path / "results" / f"{names[1]}.failed.json").write_text('{"reason": "it broke"}')
        raise KeyboardInterrupt
    assert main(["status", "--output", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "1 done, 1 failed, 0 running" in said and "1 to do that an interrupted call left" in said
    assert "base2new/birds/coop 2: it broke" in said
    with loop.announced(tmp_path, names[2:]):
        (tmp_path / "results" / f"{names[2]}.json").write_text("{}")
    assert main(["status", "--output", str(tmp_path)]) == 0
    assert "to do" not in capsys.readouterr().out and not (tmp_path / "claims").exists()
