"""The `promptbench` command, through the installed one where that matters and in the same process elsewhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import make_fake
import pytest
import torch
from safetensors.torch import load_file
from shared_paths import TINY

from promptbench import __main__, registry
from promptbench.cli.commands import COMMANDS, GROUPS
from promptbench.cli.describe import length, rate, recipe_line
from promptbench.cli.main import interrupts_heard, main
from promptbench.recipe import Recipe
from promptbench.results.result import Result, read_results
from promptbench.runs.plan import plan_runs
from promptbench.runs.request import Request
from promptbench.sweep.status import PLANNED
from promptbench.training.numerics import peak_memory_restarts

pytestmark = pytest.mark.usefixtures("no_plugins")

SEEDS = ("--seeds", "1", "2")
COOP = ("--set", "coop.epochs=2", "coop.batch=4")
SHORT = (*COOP, "maple.epochs=2", "maple.batch=4")
PLUGIN = '''"""Shift: one learned number per class.

A. Author, "Shift", 2026, arXiv:2601.00001.
"""

import torch
from torch import nn

from promptbench.method import Method, Recipe


class Shift(Method):
    """Zero-shot scores plus a learned scale."""

    category = "toy"
    recipes = {("*", "*"): Recipe(epochs=1, lr=0.01, batch=4, origin="ours")}

    def __init__(self, config, backbone):
        super().__init__(config, backbone)
        self.scale = nn.Parameter(torch.ones(backbone.embed_dim))

    def set_classes(self, names):
        super().set_classes(names)
        tokens = self.backbone.embed_text([f"a photo of a {name}." for name in names])
        self.text = self.backbone.encode_text(tokens.embeddings, tokens.eot)

    def forward(self, images):
        return self.classify(self.backbone.encode_image(images).cls * self.scale, self.text)
'''


@pytest.fixture(scope="module")
def what(birds: Path) -> tuple[str, ...]:
    """Flags of a run that takes a moment."""
    return (*of_tiny(), "--protocol", "base2new", "--dataset", f"folder:{birds}", "--shots", "2", "--threads", "1")


@pytest.fixture(scope="module")
def first(what: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess]:
    """The output folder of a first call of the installed command, and what it printed."""
    output = tmp_path_factory.mktemp("first") / "runs"
    done = installed("run", "--method", "zeroshot", "coop", "maple", *SEEDS, *what, *SHORT, "--output", str(output))
    return output, done


def of_tiny() -> tuple[str, ...]:
    return ("--backbone", TINY)


def installed(*words: str, **options: Any) -> subprocess.CompletedProcess:
    """The command as users have it."""
    return subprocess.run(command(*words), capture_output=True, text=True, timeout=300, **options)


def command(*words: str) -> list[str]:
    script = Path(sys.executable).with_name("promptbench")
    return [*([str(script)] if script.exists() else [sys.executable, "-m", "promptbench"]), *words]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def by_name(folder: Path) -> dict[str, Result]:
    return {result.name: result for result in read_results(folder)}


@pytest.mark.slow
def test_the_installed_command_trains_evaluates_stores_and_prints(first: tuple[Path, Any]) -> None:
    output, done = first
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("### base2new on mini, backbone ")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if "|" in line]
    assert rows[0] == ["dataset", "method", "selection", "text prior", "base", "new", "H", "joint", "n"]
    assert [row[1].rstrip("‡") for row in rows[2:]] == ["Zero-shot CLIP (generic)", "CoOp", "MaPLe", "Zero-shot CLIP"]
    assert [row[2:4] for row in rows[2:]] == [
        ["none", "generic"],
        *[["unknown", "generic"]] * 2,  # of which the call set the epochs
        ["none", "dataset"],
    ]
    assert all("±" in row[4] and row[8] == "2" for row in rows[2:])
    assert "rendered" not in done.stdout  # the suite's note is about its own datasets
    assert "[8/8] base2new, " in done.stderr  # of whichever run ends last: several go on at once
    assert "] base2new, 2 shots: maple birds seed 2: base " in done.stderr and "loss" in done.stderr
    kinds = {path.suffix for path in output.rglob("*") if path.is_file()}
    assert kinds == {".json", ".safetensors"} and len(list(output.rglob("*.json"))) == 8


@pytest.mark.slow
def test_results_say_under_which_conditions_they_were_made(first: tuple[Path, Any]) -> None:
    results = read_results(first[0])
    assert len({result.spec.weights_hash for result in results}) == 1
    for result in results:
        spec, conditions = result.spec, result.conditions
        names = ("base", "new", "joint")
        of_each = ("accuracy", "ece", "adaptive_ece", "nll", "brier")
        measured = {f"{name}/{metric}" for name in names for metric in of_each}
        assert set(result.metrics) == measured | {"h", "open_world_auc"}
        of_all = [spec.weights_hash, spec.split_digest, spec.architecture.partition(":")[2]]
        of_all += [*spec.class_names.values(), *spec.contents.values()]
        assert {len(digest) for digest in of_all} == {64}
        assert len(spec.sample_digest) == len(spec.trained_names) == (0 if spec.method == "zeroshot" else 64)
        codes = {spec.method_code, spec.data_code, spec.training_code, spec.evaluation_code}
        assert len(codes) == 4 and {len(code.partition(":")[2]) for code in codes} == {64}
        assert conditions["sample_size"] == 4 and spec.seeds in {(1, 1), (2, 2)}
        assert spec.shots == (0 if spec.method == "zeroshot" else 2)  # it sees no image
        assert set(spec.class_names) == set(spec.templates) == set(conditions["images"]) == set(names)
        assert spec.threads == 1 and spec.plugin == "" and result.versions["torch"] == torch.__version__.split("+")[0]
        assert result.cost["eval_seconds"] > 0
        assert result.cost.get("peak_memory_mb", 0.0) > 0 or not peak_memory_restarts("cpu")
        trains = spec.method != "zeroshot"
        assert bool(conditions["training_key"]) == bool(result.losses) == trains
        assert bool(result.cost["learned_parameters"]) == trains
        if trains:
            assert conditions["provenance"]["recipe.epochs"] == "--set" and spec.recipe["epochs"] == 2
            assert conditions["provenance"]["recipe.lr"] == "suite mini" and len(result.losses) == 2
            assert (first[0] / "trainings" / f"{conditions['training_key'][:32]}.safetensors").exists()
    digests = {result.spec.data_seed: result.spec.sample_digest for result in results if result.spec.shots}
    assert len(set(digests.values())) == 2  # another seed, another sample


@pytest.mark.slow
def test_a_second_call_skips_what_is_finished(
    first: tuple[Path, Any], what: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    output, done = first
    before = files(output)
    call = ["run", "--method", "zeroshot", "coop", "maple", *SEEDS, *what, *SHORT, "--output", str(output)]
    assert main(call) == 0
    assert capsys.readouterr().out == done.stdout
    assert main([*call, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert text.count("\ndone ") == 8 and "8 runs, 8 finished, 0 to do" in text
    assert main([*call, "--dry-run", "--set", "coop.n_ctx=4"]) == 0
    assert "6 finished, 2 to do" in capsys.readouterr().out
    assert files(output) == before


@pytest.mark.slow
def test_equal_specs_give_bit_identical_runs(
    first: tuple[Path, Any], what: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["run", "--method", "coop", "maple", "--seeds", "2", *what, *SHORT, "--output", str(tmp_path)]
    torch.manual_seed(99)  # whatever the global generator did before
    assert main(call) == 0
    expected, found = by_name(first[0]), by_name(tmp_path)
    assert found
    for name, result in found.items():
        other = expected[name]
        assert (result.metrics, result.losses) == (other.metrics, other.losses)
        assert result.conditions == other.conditions
    trainings = [path.name for path in (tmp_path / "trainings").iterdir()]
    assert len(trainings) == 2
    for name in trainings:
        one, two = load_file(tmp_path / "trainings" / name), load_file(first[0] / "trainings" / name)
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.slow
def test_seeds_can_be_set_apart(
    what: tuple[str, ...], birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["run", "--method", "coop", *what, *COOP, "--output", str(tmp_path), "--seeds", "1", "2"]
    assert main([*call, "--data-seed", "7"]) == 0
    results = [result for result in read_results(tmp_path) if result.spec.method == "coop"]
    assert [result.spec.seeds for result in results] in ([(7, 1), (7, 2)], [(7, 2), (7, 1)])
    assert len({result.spec.sample_digest for result in results if result.spec.shots}) == 1
    assert "seeds 7/1, 7/2" in capsys.readouterr().out
    assert main([*call, "--train-seed", "7", "--dry-run"]) == 0
    assert "1/7" in capsys.readouterr().out


@pytest.mark.slow
def test_tables_are_printed_in_every_format(first: tuple[Path, Any], capsys: pytest.CaptureFixture[str]) -> None:
    call = ["table", "--results", str(first[0])]
    assert main(call) == 0
    assert capsys.readouterr().out == first[1].stdout
    assert main([*call, "--format", "csv", "--method", "maple", "coop"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("protocol,suite,backbone,kind,dataset,dataset title,method,label")
    asked, always = ["maple", "coop"], ["zeroshot", "zeroshot@generic"]  # the suite's companions stay
    assert [line.split(",")[6] for line in lines[1:]] == asked + always
    assert main([*call, "--format", "latex", "--dataset", "birds"]) == 0
    assert r"\begin{tabular}{lcccc}" in capsys.readouterr().out


def test_a_method_from_a_file_is_listed_described_and_run(
    what: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "shift.py"
    plugin.write_text(PLUGIN)
    assert main(["list", "methods", "--plugin", str(plugin)]) == 0
    assert ["shift", "toy"] in [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert main(["describe", "shift", "--plugin", str(plugin)]) == 0
    assert "Recipes (protocol, dataset)\n  *  *  1 epoch  " in capsys.readouterr().out
    call = ["run", "--plugin", str(plugin), "--method", "shift", *what, "--output", str(tmp_path / "runs")]
    assert main(call) == 0
    assert "Shift" in capsys.readouterr().out
    before = [result for result in read_results(tmp_path / "runs") if result.spec.method == "shift"]
    assert len(before[0].spec.plugin) == 64
    plugin.write_text(PLUGIN.replace("torch.ones", "torch.zeros"))
    assert main([*call, "--dry-run"]) == 0
    assert "3 runs, 2 finished, 1 to do" in capsys.readouterr().out  # another method under the same name


@pytest.mark.slow
def test_a_failed_run_is_recorded_and_the_others_go_on(
    what: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["run", "--method", "maple", "coop", *what, *SHORT, "--output", str(tmp_path)]
    call += ["--set", "maple.lr=1e30", "maple.epochs=3"]
    assert main(call) == 1
    captured = capsys.readouterr()
    assert "| CoOp" in captured.out.replace("|       | ", "| ") and "MaPLe" not in captured.out
    assert "maple birds seed 1: FAILED" in captured.err and "1 of 4 runs failed" in captured.err
    (failure,) = tmp_path.rglob("*.failed.json")
    record = json.loads(failure.read_text())
    place = {"method": "maple", "dataset": "birds", "data_seed": 1, "train_seed": 1}
    assert place.items() <= record["where"].items()
    assert record["where"]["epoch"] >= 2 and record["where"]["step"] == 1 and record["where"]["lr"] > 1e29
    assert "Traceback" in record["traceback"] and "learning rate" in record["reason"]
    assert len(list((tmp_path / "trainings").iterdir())) == 1  # no tensors of the failed training
    assert main([*call, "--dry-run"]) == 0
    assert "3 finished, 1 to do (1 failed before)" in capsys.readouterr().out
    assert main(call) == 1  # tried again, in vain
    assert "the run failed" in capsys.readouterr().err
    assert len(read_results(tmp_path)) == 3


def test_scores_that_are_not_finite_are_a_failure(
    what: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "broken.py"
    plugin.write_text(PLUGIN.replace("self.text)", "self.text if self.training else self.text / 0)"))
    call = ["run", "--plugin", str(plugin), "--method", "broken", *what, "--output", str(tmp_path / "runs")]
    assert main(call) == 1
    assert "scores of base images are infinite or NaN" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_half_written(what: tuple[str, ...], tmp_path: Path) -> None:
    call = ["run", "--method", "coop", *what, "--output", str(tmp_path)]
    long = [*call, "--set", "coop.epochs=100000", "coop.batch=4"]
    pipes: dict[str, Any] = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    heard = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so do theirs
    process = subprocess.Popen(command(*long), **pipes)
    signal.signal(signal.SIGINT, heard)
    try:
        deadline = time.monotonic() + 120
        while len(list(tmp_path.rglob("*.json"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(1)  # in the middle of the training
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert said.rstrip().endswith("goes on from here") and "Traceback" not in said
    assert all(name.endswith((".json", PLANNED)) and "failed" not in name for name in files(tmp_path))
    assert len(read_results(tmp_path)) == 2
    assert main([*call, "--set", "coop.epochs=1", "coop.batch=4"]) == 0
    assert len(read_results(tmp_path)) == 3


def test_ctrl_c_is_heard_where_python_drops_it(capsys: pytest.CaptureFixture[str]) -> None:
    class Thrown:
        def __del__(self) -> None:
            raise KeyboardInterrupt

    with interrupts_heard():
        thrown = Thrown()
        with pytest.raises(KeyboardInterrupt):
            del thrown
            for _ in range(200):  # it ends between two steps, and interrupts no sleep
                time.sleep(0.1)
    assert "Traceback" not in capsys.readouterr().err


def test_ctrl_c_while_the_command_is_imported_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted:
        def find_spec(self, *_: Any) -> None:
            raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "promptbench.cli.main")
    monkeypatch.setattr(sys, "meta_path", [Interrupted()])
    before = signal.getsignal(signal.SIGINT)
    try:
        assert __main__.command() == 130
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # while Python ends
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "promptbench: interrupted\n"


@pytest.mark.slow
def test_a_stored_training_is_used_again(
    what: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["run", "--method", "coop", *what, *COOP, "--output", str(tmp_path)]
    assert main(call) == 0
    (result,) = (path for path in tmp_path.rglob("coop-*.json"))
    (training,) = (tmp_path / "trainings").iterdir()
    before, changed = json.loads(result.read_text()), training.stat().st_mtime_ns
    result.unlink()
    assert main(call) == 0
    after = json.loads(result.read_text())
    assert (after["metrics"], after["losses"]) == (before["metrics"], before["losses"])
    assert training.stat().st_mtime_ns == changed
    training.write_bytes(training.read_bytes()[:-7])  # damaged: trained again
    result.unlink()
    assert main(call) == 0
    assert json.loads(result.read_text())["metrics"] == before["metrics"]


def test_a_data_root_is_only_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "data"
    for name in ("dtd", "eurosat"):
        make_fake.make(name, root)
    before = files(root)
    for folder, _, names in os.walk(root):
        for name in (*names, ""):
            os.chmod(os.path.join(folder, name), 0o444 if name else 0o555)
    flags = [*of_tiny(), "--suite", "clip11", "--data-root", str(root), "--dataset", "dtd", "eurosat", "--shots", "2"]
    flags += ["--threads", "1", "--seeds", "1", "--output", str(tmp_path / "runs")]
    assert main(["run", "--method", "zeroshot", "coop", *flags, "--set", "coop.epochs=1", "coop.batch=4"]) == 0
    table = capsys.readouterr().out
    assert "average" in table and "mean of per-dataset H" in table and table.index("DTD") < table.index("EuroSAT")
    assert files(root) == before


def test_show_config_says_where_values_come_from(capsys: pytest.CaptureFixture[str]) -> None:
    call = ["show-config", "--method", "maple", "--dataset", "dtd", "--suite", "clip11", "--set", "maple.lr=0.01"]
    assert main([*call, "--shots", "4"]) == 0
    lines = {line.split()[0]: line.split(None, 2)[2] for line in capsys.readouterr().out.splitlines()}
    assert lines["backbone"].split() == ["ViT-B-16-quickgelu:openai", "suite", "clip11"]
    assert lines["shots"].split() == ["4", "--shots"]
    assert lines["suite"].split() == ["clip11", "--suite"]
    assert lines["recipe.lr"].split() == ["0.01", "--set"]
    assert lines["recipe.epochs"].split() == ["5", "recipe", "(authors)"]
    assert lines["config.depth"].startswith("9") and "authors' config" in lines["config.depth"]


@pytest.mark.parametrize("kind", ["methods", "datasets", "protocols", "suites", "backbones"])
def test_lists_have_a_head_and_a_line_each(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", kind]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(kind.removesuffix("s")) and len(lines) > 1
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize("kind", ["methods", "datasets", "protocols"])
def test_everything_that_is_listed_is_described(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name in registry.names(kind):
        assert main(["describe", name]) == 0
        text = capsys.readouterr().out
        assert text.startswith(f"{name}\n\n") and "object at 0x" not in text and "MISSING" not in text


def test_recipes_that_are_not_as_in_dassl_say_how(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "clip_lora"]) == 0
    assert "500 steps a shot  adamw, lr 0.0002 to 1e-06 by step  batch 32    authors" in capsys.readouterr().out
    assert main(["describe", "coop"]) == 0
    assert " 50 epochs   lr 0.002  batch 32" in capsys.readouterr().out
    recipe = Recipe(epochs=1, lr=0.1, batch=4, optimizer="adam", betas=(0.5, 0.9), eps=1e-4, origin="ours")
    assert rate(recipe) == "adam, betas 0.5,0.9, eps 0.0001, lr 0.1"
    assert [length(recipe), length(replace(recipe, epochs=0, steps=1))] == ["1 epoch", "1 step"]
    asked = {"protocol": "few_shot", "suite": "clip11", "datasets": ["dtd"], "shots": 4, "device": "cpu"}
    request = Request.of(methods=["clip_lora"], **asked)
    said = {recipe_line(run) for run in plan_runs(request) if run.spec.method == "clip_lora"}
    assert said == {"4 shots, 2000 steps, adamw, lr 0.0002 to 1e-06 by step, batch 32 (authors)"}


def test_suites_are_described(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "mini"]) == 0
    text = capsys.readouterr().out
    assert "mini_shapes" in text and "always run  zeroshot, zeroshot@generic" in text


def test_help_and_lists_are_fast_and_import_no_torch() -> None:
    code = (
        "import sys, time; began = time.perf_counter()\n"
        "from promptbench.cli.main import main\n"
        "for words in (['--help'], ['run', '--help']):\n"
        "    try: main(words)\n"
        "    except SystemExit as left: assert not left.code\n"
        "took = time.perf_counter() - began\n"
        "for kind in ('methods', 'datasets', 'protocols', 'scores', 'suites', 'backbones'):\n"
        "    assert main(['list', kind]) == 0\n"
        "heavy = {'torch', 'torchvision', 'open_clip', 'pandas', 'numpy', 'pytorch_lightning', 'rich'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "print(took)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout.splitlines()[-1]) < 1.0  # measured: 0.15 s on a busy core


@pytest.mark.slow
def test_commands_import_what_they_need_and_no_more(tmp_path: Path) -> None:
    """One after another in a process, each may have what it and those before it need."""
    stored = Path(__file__).parents[2] / "results" / "mini" / "results" / "base2new" / "mini_fabrics"
    (tmp_path / "few").mkdir()
    for path in sorted(stored.glob("coop*.json"))[:2]:
        (tmp_path / "few" / path.name).write_bytes(path.read_bytes())
    code = (
        "import sys\n"
        "from promptbench.cli.main import main\n"
        "def without(libraries, *words):\n"
        "    assert main(words) == 0, words\n"
        "    assert not set(libraries.split()) & set(sys.modules), (words, set(libraries.split()) & set(sys.modules))\n"
        "training = 'pytorch_lightning '\n"
        "encoding = training + 'torchvision open_clip torchmetrics scipy '\n"
        "torch = encoding + 'torch '\n"
        "without(torch + 'numpy pandas matplotlib rich', 'status', '--results', 'few')\n"
        "without(torch + 'matplotlib rich', 'table', '--results', 'few')\n"
        "without(torch + 'rich', 'plot', 'seeds', '--results', 'few', '-o', 'seeds.svg')\n"
        "without(torch + 'rich', 'report', '--results', 'few', '-o', 'page.html')\n"
        "without(encoding, 'describe', 'maple')\n"
        "run = ('run', '--method', 'zeroshot', '--dataset', 'mini_fabrics', '--limit', '9', '--jobs', '1')\n"
        "without(encoding, *run, '--dry-run', 'list')\n"
        "without(training, *run)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_every_command_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("run", "show-config", "list", "describe", "table"):
        with pytest.raises(SystemExit):
            main([name, "--help"])
        assert f"Example: promptbench {name} " in " ".join(capsys.readouterr().out.split())


def test_the_help_has_every_command_in_a_group_and_the_command_alone_prints_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([]) == 0
    alone = capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--help"])
    assert alone == capsys.readouterr().out
    assert len(COMMANDS) == len(set(COMMANDS))
    assert all(f"\n  {name.replace('_', '-')} " in alone for name in COMMANDS)
    assert all(f"\n{title}:\n" in alone for title in GROUPS)
