"""Executors: a Ray cluster of several nodes and Slurm's local stand-in give the files of one process, also when a node
is killed in the middle or a task is preempted; what is wrong with a call is said in a sentence."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from promptbench import registry, runner
from promptbench.cli import main
from promptbench.config import UsageError
from promptbench.executors import contract, parcel, slurm, staging

_spec = importlib.util.spec_from_file_location("make_fake", Path(__file__).parent / "data" / "make_fake.py")
assert _spec is not None and _spec.loader is not None
make_fake = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make_fake)

TINY = f"{Path(__file__).parent / 'data' / 'tiny-clip.json'}:random"
STEP = 0.25  # seconds, so that there is time to kill
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
    monkeypatch.setattr(registry, "_files", {kind: {} for kind in ("methods", "datasets", "protocols")})
    monkeypatch.setattr(runner, "LOOK_AGAIN", 0.05)
    yield
    torch.set_num_threads(1)
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
    data = ("--data-root", str(root / "data"), "--dataset", "folder:birds", "--backbone", TINY)
    return ("run", *METHODS, *data, "--shots", "2", "--threads", "1", "--seeds", "1", *plugins)


@pytest.fixture(scope="module")
def whole(call: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The numbers of one process that nobody disturbs."""
    registry._files = {kind: {} for kind in ("methods", "datasets", "protocols")}
    output = tmp_path_factory.mktemp("whole")
    assert main([*call, "--output", str(output)]) == 1
    return numbers(output)


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
def cluster() -> Iterator[Any]:
    """A Ray cluster on this machine: a head that does no runs, and two nodes for one run each."""
    pytest.importorskip("ray", reason="Ray is not installed (the extra `ray`)")
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    head = {"num_cpus": 0, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    found = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        found.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    yield found
    found.shutdown()


def test_ray_gives_the_files_of_one_process_though_a_node_is_killed(
    cluster: Any,
    call: tuple[str, ...],
    whole: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    notes, output = tmp_path / "notes", tmp_path / "runs"
    monkeypatch.setenv("PROMPTBENCH_TEST_NOTES", str(notes))
    monkeypatch.setenv("PROMPTBENCH_PARTIAL_SECONDS", "0")
    monkeypatch.setattr("promptbench.executors.ray.POLL", 0.1)

    def kill(partials: list[Path]) -> None:
        (node,) = [node for node in cluster.worker_nodes if node.node_id in notes.read_text()]
        cluster.remove_node(node, allow_graceful=False)

    killer = once(lambda: list((output / "trainings").glob("*.partial")), kill)
    words = [*call, "--executor", f"ray:{cluster.address}", "--save-predictions", "--logger", "csv"]
    assert main([*words, "--output", str(output)]) == 1
    killer.join()
    said = capsys.readouterr()
    assert "is done again" in caplog.text and "broken birds seed 1: FAILED: RuntimeError: it broke" in said.err
    assert numbers(output) == whole and not leftovers(output) and not (output / "claims").exists()
    nodes = [line.split()[0] for line in notes.read_text().splitlines()]
    assert len(set(nodes)) == 2
    steps = len(nodes) - len([line for line in nodes if line == nodes[0]])
    assert 0 < steps < 12  # the second node went on from the note of the first, or its steps would be all of them
    (failure,) = (output / "results").rglob("broken*.failed.json")
    assert "it broke" in json.loads(failure.read_text())["traceback"]
    assert len(list((output / "predictions").rglob("*.safetensors"))) == 3 and list(output.rglob("logs/**/metrics.csv"))


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
    assert (tmp_path / "disk" / "birds").is_dir() and (tmp_path / "cache").is_dir()
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
        monkeypatch.setattr(f"promptbench.executors.{module}.installed", lambda package, name: None)
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
