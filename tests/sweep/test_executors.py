"""Executors: a Ray cluster of several nodes and Slurm's local stand-in give the files of one process, also when a node
is killed in the middle or a task is preempted; nodes need not be alike, keep no files, and get no secret through a
disk; what is wrong with a call is said in a sentence."""

from __future__ import annotations

import ast
import contextlib
import csv
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import make_fake
import pytest
import torch
from shared_paths import TINY

from promptbench import registry
from promptbench.cli.flags import place_of, request_of
from promptbench.cli.main import main, parser
from promptbench.config import UsageError
from promptbench.runs import plan
from promptbench.storage.claims import read
from promptbench.sweep import loop
from promptbench.sweep import loop as sweep_job
from promptbench.sweep.executors import contract, slurm
from promptbench.sweep.executors import contract as parcel
from promptbench.sweep.executors import ray as ray_executor
from promptbench.sweep.executors import slurm as staging

STEP = 0.25  # seconds, so that there is time to kill
LIMIT = 150  # seconds that a test with Ray may take
PLUGIN = f'''"""Slow: CoOp that takes its time, and says which node it is on.

A. Author, "Slow", 2026, arXiv:2601.00001.
"""

import os
import sys
import time

from promptbench.methods.coop import CoOp


def node():
    ray = sys.modules.get("ray")
    return ray.get_runtime_context().get_node_id() if ray and ray.is_initialized() else "here"


class Slow(CoOp):
    def loss(self, images, labels):
        if os.environ.get("PROMPTBENCH_TEST_NOTES"):
            with open(os.environ["PROMPTBENCH_TEST_NOTES"], "a") as file:
                file.write(f"{{node()}} {{os.getpid()}}\\n")
            time.sleep({STEP})
            if os.environ.get("PROMPTBENCH_TEST_EXIT"):
                os._exit(3)
        return super().loss(images, labels)
'''
BROKEN = '''"""Broken: it fails.

A. Author, "Broken", 2026, arXiv:2601.00002.
"""

from promptbench.method import Method


class Broken(Method):
    trains = False

    def forward(self, images):
        raise RuntimeError("it broke")
'''
METHODS = ("--method", "zeroshot", "slow", "broken", "--set", "slow.epochs=12", "slow.batch=4")


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_files", {})
    forget_plugins()
    monkeypatch.setattr(loop, "LOOK_AGAIN", 0.05)
    yield
    torch.set_num_threads(1)
    forget_plugins()


def forget_plugins() -> None:
    """As another process begins."""
    registry._files.update({kind: {} for kind in ("methods", "datasets", "protocols")})
    for name in [name for name in sys.modules if name.startswith("promptbench_plugin.")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with the images, and plugins beside it."""
    folder = tmp_path_factory.mktemp("root")
    make_fake.make_folder(folder / "data" / "birds")
    (folder / "slow.py").write_text(PLUGIN)
    (folder / "broken.py").write_text(BROKEN)
    return folder


@pytest.fixture(scope="module")
def call(root: Path) -> tuple[str, ...]:
    """A sweep that takes a moment."""
    plugins = ("--plugin", str(root / "slow.py"), str(root / "broken.py"))
    what = ("--protocol", "base2new", "--dataset", "folder:birds")
    data = ("--data-root", str(root / "data"), *what, "--backbone", TINY)
    return ("run", *METHODS, *data, "--shots", "2", "--threads", "1", "--seeds", "1", *plugins)


@pytest.fixture(scope="module")
def slow(call: tuple[str, ...]) -> tuple[str, ...]:
    """Its slow run alone."""
    return tuple(word for word in call if word not in ("zeroshot", "broken"))


@pytest.fixture(scope="module")
def folder(call: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one process that nobody disturbs."""
    forget_plugins()
    output = tmp_path_factory.mktemp("whole")
    assert main([*call, "--logger", "csv", "--output", str(output)]) == 1
    forget_plugins()
    return output


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[str, Any]:
    """Its numbers."""
    return numbers(folder)


def numbers(output: Path) -> dict[str, Any]:
    """What must be equal: result files without costs, times and tracebacks, and learned tensors, by path."""
    found: dict[str, Any] = {}
    for path in (output / "results").rglob("*.json"):
        record = json.loads(path.read_text())
        omitted = ("cost", "created", "commit", "traceback")
        found[path.name] = {key: record[key] for key in record if key not in omitted}
    for path in (output / "trainings").glob("*.safetensors"):
        content = path.read_bytes()  # the head holds the seconds
        found[path.name] = content[8 + int.from_bytes(content[:8], "little") :]
    return found


def same(output: Path, whole: Path) -> bool:
    """Whether the numbers of some runs are those of all of them."""
    found = numbers(output)
    return bool(found) and found.items() <= numbers(whole).items()


def logged(output: Path) -> dict[str, list[dict[str, str]]]:
    """What `--logger csv` wrote, row by row without empty fields, by the folder of the run."""
    found = {}
    for path in output.rglob("metrics.csv"):
        with path.open(newline="") as file:
            rows = [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]
        found[path.parent.name] = rows
    return found


def job_of(words: tuple[str, ...], output: Path) -> tuple[sweep_job.Job, list[plan.Run]]:
    """What a worker is told of a call, and its runs."""
    options = parser().parse_args([*words, "--output", str(output)])
    plugins = tuple(map(Path, options.plugin))
    for path in plugins:
        registry.add_file(path)
    request = request_of(options)
    runs = plan.plan_runs(request)
    place = place_of(options, output, "cpu")
    return sweep_job.Job(request.asked, place, tuple(run.spec.name for run in runs), {}, plugins), runs


def folders() -> set[Path]:
    """The folders of Ray's runs on this machine."""
    return set(Path(tempfile.gettempdir()).glob("promptbench-ray-*"))


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Fails what takes longer than `LIMIT`, and does not wait for ever."""

    def give_up(*_: object) -> None:
        pytest.fail(f"no end after {LIMIT} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def leftovers(output: Path) -> list[str]:
    kept = (".json", ".safetensors", ".csv", ".yaml")
    return [str(path) for path in output.rglob("*") if path.is_file() and path.suffix not in kept]


def once(condition: Callable[[], Any], act: Callable[[Any], None]) -> threading.Thread:
    """A thread that acts once something is so."""

    def wait() -> None:
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline:
            found = condition()
            if found:
                act(found)
                return
            time.sleep(0.05)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


@pytest.fixture(scope="module")
def head() -> Iterator[Any]:
    """The head of a Ray cluster on this machine, which does no runs."""
    pytest.importorskip("ray", reason="Ray is not installed (the extra `ray`)")
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    health = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000, "health_check_failure_threshold": 4}
    settings = {"num_cpus": 0, "object_store_memory": 80 * 2**20, "include_dashboard": False, "_system_config": health}
    with bounded():
        found = Cluster(initialize_head=True, head_node_args=settings)
    yield found
    with bounded():
        found.shutdown()


@pytest.fixture
def cluster(head: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster with two nodes for one run each."""
    monkeypatch.setattr(ray_executor, "POLL", 0.1)
    before = folders()
    with bounded():
        while len(head.worker_nodes) < 2:
            head.add_node(num_cpus=1, object_store_memory=80 * 2**20)
        yield head
    assert folders() == before


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with the node and the process of every training step."""
    path = tmp_path / "notes"
    monkeypatch.setenv("PROMPTBENCH_TEST_NOTES", str(path))
    return path


def begun(notes: Path) -> bool:
    """Whether a training has gone some steps."""
    return notes.exists() and len(notes.read_text().splitlines()) > 2


@pytest.mark.slow
@pytest.mark.ray
def test_ray_gives_the_files_of_one_process_though_a_node_is_killed(
    cluster: Any,
    call: tuple[str, ...],
    folder: Path,
    tmp_path: Path,
    notes: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    output, before = tmp_path / "runs", folders()

    def kill(_: Any) -> None:
        (node,) = [node for node in cluster.worker_nodes if node.node_id in notes.read_text()]
        cluster.remove_node(node, allow_graceful=False)

    killer = once(lambda: begun(notes), kill)
    words = [*call, "--executor", f"ray:{cluster.address}", "--save-predictions", "--logger", "csv"]
    assert main([*words, "--output", str(output)]) == 1
    killer.join()
    said = capsys.readouterr()
    assert "is done again" in caplog.text and "broken birds seed 1: FAILED: RuntimeError: it broke" in said.err
    assert numbers(output) == numbers(folder) and not leftovers(output) and not (output / "claims").exists()
    nodes = [line.split()[0] for line in notes.read_text().splitlines()]
    assert len(set(nodes)) == 2 and nodes.count(nodes[-1]) == 12  # the second one began anew
    (failure,) = (output / "results").rglob("broken*.failed.json")
    assert "it broke" in json.loads(failure.read_text())["traceback"]
    assert len(list((output / "predictions").rglob("*.safetensors"))) == 3
    (left,) = folders() - before  # that of the node that was killed
    shutil.rmtree(left)
    rows, expected = logged(output), logged(folder)
    assert rows == expected and len(rows) == 3


@pytest.mark.slow
@pytest.mark.ray
def test_ray_uses_a_stored_training(
    cluster: Any, slow: tuple[str, ...], folder: Path, tmp_path: Path, notes: Path
) -> None:
    output = tmp_path / "runs"
    shutil.copytree(folder / "trainings", output / "trainings")
    before = {path.name: path.read_bytes() for path in (output / "trainings").iterdir()}
    words = [*slow, "--executor", f"ray:{cluster.address}", "--executor-option", "num_cpus=0.5"]
    assert main([*words, "--output", str(output)]) == 0
    assert same(output, folder) and not notes.exists()
    assert {path.name: path.read_bytes() for path in (output / "trainings").iterdir()} == before


@pytest.mark.slow
@pytest.mark.ray
def test_ray_records_a_run_that_ends_its_processes_and_goes_on(
    cluster: Any,
    call: tuple[str, ...],
    folder: Path,
    tmp_path: Path,
    notes: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output, before = tmp_path / "runs", folders()
    monkeypatch.setenv("PROMPTBENCH_TEST_EXIT", "1")
    words = [*call, "--executor", f"ray:{cluster.address}", "--executor-option", "max_retries=1"]
    assert main([*words, "--output", str(output)]) == 1
    said = capsys.readouterr().err
    assert "slow birds seed 1: FAILED: the node or process at this run was lost, 2 times (" in said
    assert "broken birds seed 1: FAILED: RuntimeError: it broke" in said
    assert len(set(notes.read_text().splitlines())) == 2  # processes
    found, expected = numbers(output), numbers(folder)
    equal = {name.partition("-")[0] for name in found if found[name] == expected.get(name)}
    assert equal == {"zeroshot", "zeroshot@generic", "broken"}
    for left in folders() - before:
        shutil.rmtree(left)


@pytest.mark.slow
@pytest.mark.ray
def test_ray_ends_with_ctrl_c_and_leaves_nothing_behind(
    cluster: Any, slow: tuple[str, ...], folder: Path, tmp_path: Path, notes: Path
) -> None:
    output = tmp_path / "runs"
    words = [*slow, "--executor", f"ray:{cluster.address}", "--output", str(output)]
    killer = once(lambda: begun(notes), lambda _: os.kill(os.getpid(), signal.SIGINT))
    assert main(words) == 130
    killer.join()
    steps = len(notes.read_text().splitlines())
    assert steps < 12 and not list((output / "claims").glob("*.claim")) and not list(output.rglob("slow*"))
    forget_plugins()
    assert main(words) == 0
    assert same(output, folder) and len(notes.read_text().splitlines()) == steps + 12


@pytest.mark.slow
@pytest.mark.ray
def test_ray_gives_up_a_run_that_another_call_has_taken_over(
    cluster: Any, slow: tuple[str, ...], tmp_path: Path, notes: Path
) -> None:
    output = tmp_path / "runs"

    def take(_: Any) -> None:
        claims = {path: dict(holder.about) for path in (output / "claims").glob("*.claim") if (holder := read(path))}
        (path,) = [path for path, said in claims.items() if said.get("kind") == "run" and "slow" in str(said["run"])]
        path.unlink()

    taker = once(lambda: begun(notes), take)
    words = [*slow, "--set", "slow.epochs=48", "slow.batch=4", "--output", str(output)]
    assert main([*words, "--executor", f"ray:{cluster.address}"]) == 0
    taker.join()
    assert 48 < len(notes.read_text().splitlines()) < 96  # it began again when it was free


@pytest.mark.slow
@pytest.mark.ray
def test_ray_refuses_a_node_with_other_versions(
    cluster: Any,
    call: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    here = parcel.library_versions()
    monkeypatch.setattr(parcel, "library_versions", lambda: {**here, "torch": "0.1"})
    assert main([*call, "--executor", f"ray:{cluster.address}", "--output", str(tmp_path / "runs")]) == 2
    said = f"A node of the cluster has torch {here['torch']}, and this machine not; install the same."
    assert capsys.readouterr().err.splitlines()[-1] == f"promptbench: error: {said}"
    assert not list(tmp_path.rglob("*.json")) and not (tmp_path / "runs" / "claims").exists()


@pytest.mark.slow
@pytest.mark.ray
def test_ray_says_where_no_node_has_room(
    cluster: Any, call: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*call, "--executor", f"ray:{cluster.address}", "--executor-option", "num_cpus=64"]
    assert main([*words, "--output", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(
        "promptbench: error: --executor ray: no node of the cluster has the 64 CPU that a run takes;"
    )


@pytest.mark.parametrize("name", ["results/x.json", "../x", "trainings/../../x"])
def test_ray_writes_nothing_outside_the_output_folder(name: str, tmp_path: Path, call: tuple[str, ...]) -> None:
    class Answering(ray_executor.Tasks):
        def __init__(self) -> None: ...

        def answer(self, *_: Any) -> tuple[Any, dict[str, bytes]]:
            return None, {"logs/x": b"x", name: b"x"}

    job, runs = job_of(call, tmp_path / "runs")
    with loop.Claims(tmp_path / "claims") as claims:
        work: Any = type("Work", (), {"claims": claims, "check": lambda *_: None})
        with pytest.raises(UsageError, match="refused"):
            Answering().do(job.open()[0], runs[0], work)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_plugin_that_a_machine_lacks_travels_along(
    call: tuple[str, ...], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("slow.py", "broken.py"):
        shutil.copy(root / name, tmp_path / name)
    words = tuple(str(tmp_path / Path(word).name) if word.endswith(".py") else word for word in call)
    job, _ = job_of(words, tmp_path / "runs")
    monkeypatch.setenv("PROMPTBENCH_CACHE", str(tmp_path / "cache"))
    sent = parcel.packed(job)
    (tmp_path / "slow.py").write_text("other = 1\n")
    slow, broken = sent.open().plugins
    assert slow.read_text() == PLUGIN and slow.is_relative_to(tmp_path / "cache")
    assert broken == tmp_path / "broken.py"
    slow.write_text("damaged")
    assert sent.open().plugins[0].read_text() == PLUGIN


def test_what_nodes_import_first_imports_no_torch() -> None:
    words = "import sys, promptbench.sweep.executors.ray, promptbench.sweep.executors.contract; "
    words += "print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, timeout=100, check=True)
    assert found.stdout == "False\n"


@pytest.mark.slow
def test_slurm_gives_the_files_of_one_process_though_a_task_is_preempted(
    call: tuple[str, ...],
    whole: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("submitit", reason="submitit is not installed (the extra `slurm`)")
    notes, output = tmp_path / "notes", tmp_path / "runs"
    monkeypatch.setenv("PROMPTBENCH_TEST_NOTES", str(notes))
    monkeypatch.setenv("PROMPTBENCH_PARTIAL_SECONDS", "0")
    monkeypatch.setattr(slurm, "POLL", 0.2)

    def preempt(partials: list[Path]) -> None:
        os.kill(int(notes.read_text().split()[-1]), signal.SIGUSR2)

    preempted = once(lambda: list((output / "trainings").glob("*.partial")), preempt)
    monkeypatch.setenv("PROMPTBENCH_TEST_DISK", str(tmp_path / "disk"))
    options = ["cluster=local", "time=10", "stage=$PROMPTBENCH_TEST_DISK", f"cache={tmp_path / 'cache'}"]
    assert main([*call, "--executor", "slurm", "--executor-option", *options, "--output", str(output)]) == 1
    preempted.join()
    assert "broken birds seed 1: FAILED: RuntimeError: it broke" in capsys.readouterr().err
    logs = "".join(path.read_text() for path in (output / "slurm").glob("*.err"))
    assert numbers(output) == whole and "Requeued job" in logs and not (output / "claims").exists()
    steps = [line.split()[1] for line in notes.read_text().splitlines()]
    assert len(set(steps)) == 2 and 0 < steps.count(steps[-1]) < 12  # it went on, and did not begin again
    assert len(list((tmp_path / "disk").glob("*/birds"))) == 1 and (tmp_path / "cache").is_dir()
    assert not list((output / "slurm").glob("*.at"))


def test_what_sbatch_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submitit = pytest.importorskip("submitit", reason="submitit is not installed (the extra `slurm`)")
    for name in ("sbatch", "srun"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    words = ["partition=gpu", "account=me", "time=90", "array=8", "qos=x", "sbatch.reservation=night", "mem=16GB"]
    executor = contract.choose("slurm", words)
    assert isinstance(executor, slurm.Slurm) and executor.options.array == 8
    executor.prepare()
    engine = submitit.SlurmExecutor(tmp_path)
    engine.update_parameters(**executor.parameters(1, 4, 3))
    text = engine._make_submission_file_text("command", "uid")
    for flag in ("partition=gpu", "account=me", "time=90", "qos=x", "reservation=night", "mem=16GB"):
        assert f"#SBATCH --{flag}\n" in text
    for flag in ("cpus-per-task=4", "gpus-per-node=1", "requeue", "job-name=promptbench"):
        assert f"#SBATCH --{flag}\n" in text
    assert "gpus_per_node" not in executor.parameters(0, 1, None)
    assert "gpus_per_node" not in contract.choose("slurm", ["gres=gpu:1"]).parameters(2, 1, None)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--executor", "rya"], "Unknown executor 'rya'. Did you mean 'ray'?"),
        (["--executor", "local:here"], "local takes no address"),
        (["--executor-option", "time=60"], "Unknown option of local 'time'"),
        (["--executor", "slurm", "--executor-option", "tme=60"], "sbatch.NAME=VALUE"),
        (["--executor", "slurm", "--executor-option", "time=soon"], "'time'"),
        (["--executor", "slurm", "--executor-option", "time"], "write key=value"),
        (["--executor", "ray", "--executor-option", "cpus=2"], "cpus"),
        (["--executor", "ray", "--executor-option", "num_cpus=0"], "'num_cpus' must be more than 0, not 0."),
        (["--executor", "ray", "--executor-option", "max_retries=-1"], "'max_retries' must be at least 0, not -1."),
        (["--executor", "slurm", "--executor-option", "array=0"], "'array' must be at least 1, not 0."),
        (["--executor", "slurm", "--executor-option", "time=-5"], "'time' must be at least 1, not -5."),
        (["--executor", "slurm", "--executor-option", "requeues=0"], "'requeues' must be at least 1, not 0."),
        (["--executor", "ray", "--device", "cuda:1"], "say --device cuda."),
        (["--executor", "ray:127.0.0.1:1"], "nothing answers there (Connection refused)"),
        (["--executor", "slurm"], "no sbatch and srun here"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(
    words: list[str],
    said: str,
    call: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(contract, "installed", lambda package, name: None)
    if "127.0.0.1:1" in words[1]:
        pytest.importorskip("ray", reason="Ray is not installed (the extra `ray`)")
    for module in ("ray", "slurm"):
        monkeypatch.setattr(f"promptbench.sweep.executors.{module}.installed", lambda package, name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([*call, *words, "--output", str(tmp_path / "runs")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("promptbench: error: ") and said in line and line[-1] in ".?"
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("name", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_package_is_named_with_its_extra(
    name: str, package: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda found, package=None: None)
    with pytest.raises(UsageError, match=rf"pip install promptbench-clip\[{name}\]"):
        contract.installed(package, name)


def test_no_engine_is_imported_before_it_is_used() -> None:
    for path in Path(contract.__file__).parent.glob("*.py"):
        imported = [node for node in ast.parse(path.read_text()).body if isinstance(node, (ast.Import, ast.ImportFrom))]
        names = [getattr(node, "module", None) or alias.name for node in imported for alias in node.names]
        assert not {"ray", "submitit"} & {name.partition(".")[0] for name in names}, path


@pytest.mark.parametrize(
    "name", ["../x", "results/../../x", "/etc/x", "results", "results//x", "claims/x", "logs/out/x"]
)
def test_a_file_outside_the_output_folder_is_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    (folder / "logs").mkdir(parents=True)
    (folder / "logs" / "out").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="refused"):
        parcel.inside(folder, name, ("results", "logs"))
    assert parcel.inside(folder, "results/p/d/x.json", ("results",)) == folder / "results/p/d/x.json"


def test_a_dataset_is_copied_whole_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("a")
    with monkeypatch.context() as patch:
        patch.setattr(staging.os, "rename", lambda *_: (_ for _ in ()).throw(OSError("no space")))
        with pytest.raises(OSError, match="no space"):
            staging.copy(tmp_path / "data", tmp_path / "disk" / "data")
    assert not list((tmp_path / "disk").rglob("*.txt"))
    staging.copy(tmp_path / "data", tmp_path / "disk" / "data")
    (tmp_path / "data" / "b.txt").write_text("b")
    staging.copy(tmp_path / "data", tmp_path / "disk" / "data")
    assert [path.name for path in (tmp_path / "disk" / "data").iterdir()] == ["a.txt"]


def test_a_copy_is_of_the_images_as_they_are(call: tuple[str, ...], root: Path, tmp_path: Path) -> None:
    job, runs = job_of(call, tmp_path / "runs")
    images = root / "data" / "birds"
    first = staging.staged(job.open()[0], runs, tmp_path / "disk").roots[0]
    assert first.parent == tmp_path / "disk" and staging.contents(first / "birds") == staging.contents(images)
    assert staging.staged(job.open()[0], runs, tmp_path / "disk").roots[0] == first
    image = min(path for path in images.rglob("*") if path.is_file())
    dates = (image.stat().st_atime_ns, image.stat().st_mtime_ns)
    os.utime(image, ns=(dates[0], dates[1] + 1))
    second = staging.staged(job.open()[0], runs, tmp_path / "disk").roots[0]
    os.utime(image, ns=dates)
    assert second != first and len(list((tmp_path / "disk").glob("*/birds"))) == 2


def test_a_node_with_other_cores_does_the_runs_that_were_planned(
    call: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planned: list[tuple[str, ...]] = []

    class Idle:
        def prepare(self, device: str) -> None: ...

        def execute(self, whole: sweep_job.Sweep) -> Iterator[Any]:
            monkeypatch.setattr(plan, "available_cores", lambda: 97)
            monkeypatch.setattr("promptbench.sweep.executors.slurm.LATE", 0.0)
            planned.extend([whole.job.names, tuple(run.spec.name for run in whole.job.open()[1])])
            assert {run.spec.threads for run in whole.job.open()[1]} == {5}
            with pytest.raises(UsageError, match="The run other comes out otherwise on"):
                replace(whole.job, names=("other",)).open()
            yield whole.standing()

    monkeypatch.setattr(plan, "available_cores", lambda: 5)
    monkeypatch.setattr("promptbench.experiment.choose", lambda *_: Idle())
    at = call.index("--threads")
    words = [*call[:at], *call[at + 2 :], "--suite", "clip11", "--executor", "slurm"]
    assert main([*words, "--output", str(tmp_path)]) == 2  # since nothing was done
    assert planned[0] == planned[1] and len(planned[0]) == 3
    assert "3 of 3 runs are left undone, such as base2new/birds/" in capsys.readouterr().err


def test_no_secret_goes_through_a_disk(call: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit", reason="submitit is not installed (the extra `slurm`)")
    monkeypatch.setenv("WANDB_API_KEY", "a-secret-key")
    monkeypatch.setenv("HF_TOKEN", "a-secret-token")
    monkeypatch.setenv("WANDB_PROJECT", "a-project")
    job, runs = job_of(call, tmp_path / "runs")
    tasks = slurm.Tasks(sweep_job.Sweep(job, runs), contract.choose("slurm", ["cluster=local"]))  # type: ignore[arg-type]
    written = pickle.dumps(tasks.worker)
    assert b"a-secret" not in written and b"a-project" in written
    assert parcel.packed(job, secrets=True).environment["WANDB_API_KEY"] == "a-secret-key"  # in memory
