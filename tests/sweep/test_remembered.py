"""A call whose runs are finished is answered from memory, and from nothing else than what would be found out again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from make_fake import make_folder
from PIL import Image
from shared_paths import TINY

from promptbench.cli.commands.run import recalled
from promptbench.cli.flags import request_of, session_of
from promptbench.cli.main import main, parser
from promptbench.results.result import read_results
from promptbench.storage.cache import cache_dir
from promptbench.suite import load_suite
from promptbench.sweep import remembered

MAY_HAVE_GPU = remembered.may_have_gpu()
ZEROSHOT = ("run", "--method", "zeroshot", "--threads", "1", "--device", "cpu")


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "may_have_gpu", lambda: False)


@pytest.fixture
def birds(tmp_path: Path) -> list[str]:
    """The words of a call on images in folders, with weights described by a file, that was done and is remembered."""
    make_folder(tmp_path / "birds")
    model = tmp_path / "tiny.json"
    model.write_bytes(Path(TINY.removesuffix(":random")).read_bytes())
    words = [*ZEROSHOT, "--dataset", f"folder:{tmp_path / 'birds'}", "--backbone", f"{model}:random"]
    words += ["--output", str(tmp_path / "runs")]
    do(words)
    assert recalls(words)
    return words


def do(words: Sequence[str]) -> None:
    """Do a call in this process, and remember it as one does that has begun without torch."""
    key = key_of(words)
    assert main(words) == 0
    options = parser().parse_args(words)
    request = request_of(options)
    remembered.remember(key or "", request, session_of(options, request.suite, options.output, request.device))


def key_of(words: Sequence[str]) -> str | None:
    options = parser().parse_args(words)
    return remembered.key_of(vars(options), load_suite(options.suite))


def recalls(words: Sequence[str]) -> bool:
    key = key_of(words)
    return key is not None and recalled(key, parser().parse_args(words)) is not None


def result_of(folder: Path) -> Path:
    return next((folder / "runs" / "results").rglob("*.json"))


def edit_result(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    found = json.loads(result_of(folder).read_text())
    change(found)
    result_of(folder).write_text(json.dumps(found))


def fail(folder: Path) -> None:
    path = result_of(folder)
    path.rename(path.with_suffix(".failed.json"))


def repaint(folder: Path) -> None:
    path = next((folder / "birds").rglob("*.png"))
    Image.new("RGB", (48, 48), "red").save(path)


def one_more(folder: Path) -> None:
    path = next((folder / "birds").rglob("*.png"))
    path.with_name("another.png").write_bytes(path.read_bytes())


CHANGES: dict[str, Callable[[Path], object]] = {
    "its result is gone": lambda folder: result_of(folder).unlink(),
    "its result is no result": lambda folder: result_of(folder).write_text("{}"),
    "its result was made by other code": lambda folder: edit_result(
        folder, lambda found: found["spec"].update(method_code=found["spec"]["method_code"][:-1] + "_")
    ),
    "its result is another run's": lambda folder: edit_result(folder, lambda found: found["spec"].update(train_seed=9)),
    "its result lacks images": lambda folder: edit_result(
        folder, lambda found: found["conditions"].update(skipped={"test": 1})
    ),
    "it failed": fail,
    "a killed call has left claims": lambda folder: (folder / "runs" / "claims").mkdir(),
    "an image is another one": repaint,
    "an image is new": one_more,
    "an image is gone": lambda folder: next((folder / "birds").rglob("*.png")).unlink(),
    "a class is called otherwise": lambda folder: (folder / "birds" / "wren").rename(folder / "birds" / "gull"),
    "the model is another one": lambda folder: (folder / "tiny.json").write_bytes(
        (folder / "tiny.json").read_bytes() + b"\n"
    ),
    "the memo is damaged": lambda folder: [path.write_bytes(path.read_bytes()[1:]) for path in memos()],
    "the memo is gone": lambda folder: [path.unlink() for path in memos()],
}


def memos() -> list[Path]:
    return list((cache_dir() / remembered.FOLDER).iterdir())


@pytest.mark.parametrize("change", CHANGES)
def test_a_call_is_not_recalled_where(change: str, birds: list[str], tmp_path: Path) -> None:
    CHANGES[change](tmp_path)
    assert not recalls(birds)


def test_a_call_is_not_recalled_with_predictions_that_are_not_there(birds: list[str], tmp_path: Path) -> None:
    words = [*birds, "--save-predictions"]
    do(words)
    assert recalls(words)
    next((tmp_path / "runs" / "predictions").rglob("*.safetensors")).unlink()
    assert not recalls(words) and recalls(birds)


def test_what_is_recalled_are_the_results_in_the_order_of_the_plan(birds: list[str], tmp_path: Path) -> None:
    known = recalled(key_of(birds) or "", parser().parse_args(birds))
    assert known is not None and known.labels == ("zeroshot", "zeroshot@generic")
    assert sorted(result.name for result in known.results) == [one.name for one in read_results(tmp_path / "runs")]
    assert [result.spec.preset for result in known.results] == ["", "generic"]


def test_everything_that_decides_a_call_changes_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "edited"
    package.mkdir()
    (package / "__init__.py").write_text("a = 1\n")
    (tmp_path / "own.yaml").write_text("extends: mini\ntitle: ours\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(remembered, "PACKAGES", (*remembered.PACKAGES, "edited"))
    words = [*ZEROSHOT, "--suite", str(tmp_path / "own.yaml")]
    keys = [key_of(words)]
    assert key_of(words) == keys[0]
    keys.append(key_of([*words, "--set", "mini_fabrics.render_seed=2"]))
    (package / "__init__.py").write_text("a = 2\n")
    keys.append(key_of(words))
    (tmp_path / "own.yaml").write_text("extends: mini\ntitle: ours\nshots: 4\n")
    keys.append(key_of(words))
    monkeypatch.setenv("PROMPTBENCH_DATA", str(tmp_path))
    keys.append(key_of(words))
    monkeypatch.chdir(tmp_path)
    keys.append(key_of(words))
    monkeypatch.setattr(remembered, "library_versions", lambda: {"torch": "0"})
    keys.append(key_of(words))
    assert len(set(keys)) == 7 and None not in keys
    paths = {Path(path).name for path, *_ in remembered.files_of_package()}
    assert {"coop.py", "maple.py", "dtd.py", "fit.py", "energy.py"} <= paths


def test_with_plugins_loggers_or_a_gpu_nothing_is_recalled(monkeypatch: pytest.MonkeyPatch) -> None:
    assert key_of(ZEROSHOT)
    assert key_of([*ZEROSHOT, "--logger", "csv"]) is None
    assert key_of([*ZEROSHOT, "--device", "cuda"]) is None
    assert remembered.key_of({"plugin": ["own.py"], "device": "cpu"}, load_suite("mini")) is None
    monkeypatch.setattr(remembered, "may_have_gpu", lambda: True)
    assert key_of(ZEROSHOT) is None


def test_settings_of_rendered_sets_are_remembered_and_large_datasets_are_not(
    birds: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*ZEROSHOT, "--dataset", "mini_fabrics", "--set", "mini_fabrics.swapped=true", "--limit", "9"]
    do([*words, "--output", str(tmp_path / "swapped")])
    assert recalls([*words, "--output", str(tmp_path / "swapped")])
    monkeypatch.setattr(remembered, "MOST_IMAGES", 29)  # the birds are 30
    do([*birds, "--seeds", "2"])
    assert not recalls([*birds, "--seeds", "2"])


def test_a_dataset_of_another_package_is_not_remembered(birds: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered.registry, "is_built_in", lambda kind, name: kind != "datasets")
    do([*birds, "--seeds", "2"])
    assert not recalls([*birds, "--seeds", "2"])


def test_a_sample_that_the_weights_decide_is_not_remembered(birds: list[str]) -> None:
    words = [*birds, "--method", "tip_adapter", "--shots", "2", "--sampler"]
    do([*words, "noise:0.5"])
    do([*words, "noise:0.5:confusable"])
    assert recalls([*words, "noise:0.5"]) and not recalls([*words, "noise:0.5:confusable"])


@pytest.mark.slow
def test_a_finished_call_imports_no_torch_and_says_the_same(tmp_path: Path) -> None:
    code = "import sys; from promptbench.cli.main import main; code = main(sys.argv[1:])\n"
    code += "heavy = {'torch', 'torchvision', 'open_clip', 'pytorch_lightning'} & set(sys.modules)\n"
    code += "sys.exit(code or (9 if heavy else 0))"
    environment = {**os.environ, "PROMPTBENCH_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    words = [*ZEROSHOT, "--dataset", "mini_fabrics", "mini_colours", "--limit", "20", "--output", "runs"]

    def call(**more: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**environment, **more},
        )
        return done.returncode, done.stdout, done.stderr

    first, short, long = call(), call(), call(PROMPTBENCH_CACHE_GB="19")
    assert first[0] == 9 and long[0] == 9 and short[0] == (9 if MAY_HAVE_GPU else 0)
    assert short[1:] == long[1:] and short[1] == first[1]
