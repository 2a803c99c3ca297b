"""A figure that is shown is that of today's code, images, settings and files, never one of what they were before.

Each test does a run, changes one thing that decides its figures, or one that does not, and calls again. What the second
call has to show is what a new folder gets.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import make_fake
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from short_cases import slow_but
from torch import Tensor

import promptbench
from promptbench import registry
from promptbench.cli.flags import request_of
from promptbench.cli.main import main, parser
from promptbench.data.dataset import open_dataset
from promptbench.method import Method
from promptbench.protocols.few_shot import FewShot
from promptbench.results.result import Result
from promptbench.runs import run as execution
from promptbench.runs import train
from promptbench.runs.plan import plan_runs
from promptbench.runs.session import Place as RunPlace
from promptbench.runs.session import Session, identified, modules_of
from promptbench.storage.versions import closure
from promptbench.training import files as trainings
from promptbench.training import numerics
from promptbench.training.files import load_training, read_training
from promptbench.training.numerics import peak_memory_restarts

SUITE = """\
title: tiny
backbone: {backbone}
shots: 2
few_shots: [2]
seeds: [1]
threads: 1
roles: {{few_shot: [{dataset}]}}
recipe: {{epochs: 2, lr: 0.05, batch: 4, warmup_epochs: 0, augment: false, origin: ours}}
"""
BIRDS = "{{dataset: folder, root: {root}}}"
CLASSES = ("robin", "wren")

Output = Path
Files = dict[str, bytes]


class Place:
    """A folder with images, a suite and what was run, and the command in it."""

    def __init__(self, folder: Path, backbone: str, dataset: str = "") -> None:
        self.folder, self.suite = folder, folder / "tiny.yaml"
        dataset = dataset or BIRDS.format(root=folder / "birds").replace("{{", "{").replace("}}", "}")
        self.suite.write_text(SUITE.format(backbone=backbone, dataset=dataset), encoding="utf-8")

    def words(self, *more: str, output: str = "out", method: str = "coop") -> list[str]:
        words = ["run", "--suite", str(self.suite), "--protocol", "few_shot", "--device", "cpu", "--method", method]
        return [*words, *more, "--output", str(self.folder / output)]

    def run(self, *more: str, output: str = "out", method: str = "coop") -> dict[str, Any]:
        """What the only result of a method says, after a call that went well."""
        assert main(self.words(*more, output=output, method=method)) == 0
        return self.result(output, method)

    def result(self, output: str = "out", method: str = "coop") -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.result_file(output, method).read_text(encoding="utf-8"))
        return found

    def result_file(self, output: str = "out", method: str = "coop") -> Path:
        (path,) = (self.folder / output / "results").rglob(f"{method}-*.json")
        return path

    def training(self, output: str = "out") -> Path:
        (path,) = (self.folder / output / "trainings").glob("*.safetensors")
        return path

    def states(self, output: str = "out") -> dict[str, tuple[int, int]]:
        """The files of a folder: a file that was written again is another one."""
        files = [path for path in (self.folder / output).rglob("*") if path.is_file()]
        return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def figures(result: dict[str, Any]) -> tuple[Any, Any]:
    return result["metrics"], result["losses"]


def must_differ(some: dict[str, Any], others: dict[str, Any]) -> None:
    """Raises ValueError, which no mark expects, where a change decides nothing, so that a test of it could not fail."""
    if figures(some) == figures(others):
        raise ValueError(f"the change decides nothing: {figures(some)}")


@pytest.fixture
def place(tmp_path: Path, tiny_name: str, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Two classes of six images, and a cache of its own."""
    monkeypatch.setenv("PROMPTBENCH_CACHE", str(tmp_path / "cache"))
    make_fake.make_folder(tmp_path / "birds", CLASSES, 6)
    return Place(tmp_path, tiny_name)


# The framework's code -------------------------------------------------------------------------------------------------


class Framework(Place):
    """A copy of promptbench that may be edited, and a run that was done with it before."""

    def __init__(self, folder: Path, backbone: str) -> None:
        super().__init__(folder, backbone)
        self.package = folder / "lib" / "promptbench"

    def run(self, *more: str, output: str = "out", method: str = "coop") -> dict[str, Any]:
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.package.parent),
            "PROMPTBENCH_CACHE": str(self.folder / "cache"),
            "OMP_NUM_THREADS": "1",
        }
        start = "import sys, promptbench, promptbench.cli.main as cli\n"
        start += f"assert promptbench.__file__ == {str(self.package / '__init__.py')!r}\nsys.exit(cli.main())"
        words = [sys.executable, "-c", start, *self.words(*more, output=output, method=method)]
        done = subprocess.run(words, env=environment, cwd=self.folder, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return self.result(output, method)

    def edit(self, before: str, after: str) -> None:
        """Change the only place in the framework that reads like this."""
        (path,) = [path for path in self.package.rglob("*.py") if before in path.read_text(encoding="utf-8")]
        text = path.read_text(encoding="utf-8")
        if text.count(before) != 1:
            raise ValueError(f"{path} has {before!r} {text.count(before)} times")
        path.write_text(text.replace(before, after), encoding="utf-8")


def copied_framework(target: Path) -> None:
    """promptbench as an installed package has it: methods, datasets and benchmarks inside."""
    shutil.copytree(Path(promptbench.__file__).parent, target)
    for name in ("methods", "datasets", "benchmarks"):
        module = importlib.import_module(f"promptbench.{name}")
        if not (target / name).exists():
            shutil.copytree(Path(str(module.__file__)).parent, target / name)


@pytest.fixture(scope="module")
def done_before(tmp_path_factory: pytest.TempPathFactory, tiny_name: str) -> Framework:
    """A run with the framework as it is."""
    folder = tmp_path_factory.mktemp("framework")
    make_fake.make_folder(folder / "birds", CLASSES, 6)
    framework = Framework(folder, tiny_name)
    copied_framework(framework.package)
    framework.run()
    return framework


@pytest.fixture
def framework(done_before: Framework, tiny_name: str) -> Framework:
    """The framework and its run, as they were; each test edits its own copy of the code, at the same place."""
    kept = done_before.folder / "kept"
    if not kept.exists():
        shutil.copytree(done_before.package, kept / "lib", copy_function=shutil.copy2)
        shutil.copytree(done_before.folder / "out", kept / "out", copy_function=shutil.copy2)
    else:
        shutil.rmtree(done_before.package)
        shutil.rmtree(done_before.folder / "out")
        shutil.copytree(kept / "lib", done_before.package, copy_function=shutil.copy2)
        shutil.copytree(kept / "out", done_before.folder / "out", copy_function=shutil.copy2)
    return done_before


@pytest.mark.slow
def test_an_edited_schedule_trains_again(framework: Framework) -> None:
    before = framework.result()
    framework.edit("lr_end + 0.5 * (base - lr_end) * (1", "lr_end + 5.0 * (base - lr_end) * (1")
    now = framework.run()
    assert now["losses"][0] == before["losses"][0]  # of the first step: an epoch is one batch
    assert now["losses"][1] != before["losses"][1] and now["metrics"] != before["metrics"]


@pytest.mark.slow
def test_an_edited_sentence_docstring_comment_or_annotation_costs_nothing(framework: Framework) -> None:
    before = framework.states()
    framework.edit("The learning rate of an epoch counted from 0:", "An epoch's rate, from 0:")
    framework.edit("def learning_rate(\n    base: float,", "# why\ndef learning_rate(\n    base: 'float',")
    framework.edit("steps_per_epoch: int,\n    *,", "steps_per_epoch: 'int',\n    *,")
    framework.edit("the loss became {loss}", "the loss is {loss} now")
    framework.run()
    assert framework.states() == before


@pytest.mark.slow
def test_an_edited_metric_evaluates_again_and_trains_nothing(framework: Framework) -> None:
    before, training = framework.result(), framework.training()
    state = training.stat()
    framework.edit("return 100.0 * correct / len(labels)", "return 50.0 * correct / len(labels)")
    now = framework.run()
    assert now["metrics"]["test/accuracy"] == before["metrics"]["test/accuracy"] / 2 > 0
    assert now["losses"] == before["losses"] and framework.training() == training
    assert (training.stat().st_ino, training.stat().st_mtime_ns) == (state.st_ino, state.st_mtime_ns)


def test_all_that_is_executed_is_in_the_static_closure(
    place: Place, carry_out: Callable[[Any, Any], Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One training and one evaluation, traced: no file of promptbench/ outside of what the digests of code read."""
    executed: dict[str, set[Path]] = {}

    def traced(owner: Any, name: str) -> None:
        plain = getattr(owner, name)

        def watched(*given: Any, **named: Any) -> Any:
            files: set[str] = set()
            sys.setprofile(lambda frame, event, _: files.add(frame.f_code.co_filename))
            try:
                return plain(*given, **named)
            finally:
                sys.setprofile(None)
                executed[name] = {Path(file).resolve() for file in files if Path(file).is_file()}

        monkeypatch.setattr(owner, name, watched)

    traced(train, "train_method")
    traced(execution, "evaluate")
    traced(FewShot, "measure")
    request = request_of(parser().parse_args(place.words()))
    (run,) = plan_runs(request)
    carry_out(Session(RunPlace(place.folder / "out"), request.suite), run)
    package = Path(promptbench.__file__).parent
    own = {name: {file for file in files if package in file.parents} for name, files in executed.items()}
    assert all(files for files in own.values()) and len(own["train_method"]) > 5, own

    spec = identified(Session(RunPlace(place.folder / "out"), request.suite), run).spec
    assert spec.training_code != spec.evaluation_code
    plugins = [
        *modules_of(run.method),
        *modules_of(type(open_dataset("folder", {"root": str(place.folder / "birds")}))),
    ]
    assert own["train_method"] <= set(closure("promptbench.runs.train", *plugins))
    evaluated = closure("promptbench.runs.evaluate", *plugins, *modules_of(type(run.protocol)))
    assert own["evaluate"] | own["measure"] <= set(evaluated)


# Images ---------------------------------------------------------------------------------------------------------------


def replace_images(folder: Path) -> None:
    """Other images under the same names: those of one class become the other's, and darker."""
    from PIL import Image

    one, other = (sorted((folder / name).iterdir()) for name in CLASSES)
    for here, there in zip(one, other, strict=True):
        first, second = Image.open(here).convert("RGB"), Image.open(there).convert("RGB")
        first.point(lambda value: value // 2).save(there)
        second.save(here)


def test_replaced_images_are_evaluated_again(place: Place) -> None:
    before = place.run()
    replace_images(place.folder / "birds")
    fresh = place.run(output="fresh")
    must_differ(fresh, before)
    assert figures(place.run()) == figures(fresh)


@pytest.mark.slow
def test_a_training_on_replaced_images_is_not_used(place: Place) -> None:
    before = place.run()
    replace_images(place.folder / "birds")
    place.result_file().unlink()
    fresh = place.run(output="fresh")
    must_differ(fresh, before)
    assert figures(place.run()) == figures(fresh)


@pytest.mark.slow
def test_images_that_keep_their_size_and_time_are_known_by_their_place_on_disk(place: Place) -> None:
    """Files that were swapped by renaming, where sizes and times agree."""
    images = sorted((place.folder / "birds").rglob("*.png"))
    longest = max(path.stat().st_size for path in images)
    for image in images:
        image.write_bytes(image.read_bytes().ljust(longest, b"\0"))  # what follows the end of a picture is not read
        os.utime(image, ns=(1, 1))
    before = place.run(method="zeroshot")
    one, other = (sorted((place.folder / "birds" / name).iterdir()) for name in CLASSES)
    for here, there in zip(one, other, strict=True):
        here.rename(here.with_suffix(".kept"))
        there.rename(here)
        here.with_suffix(".kept").rename(there)
    fresh = place.run(output="fresh", method="zeroshot")
    must_differ(fresh, before)
    assert figures(place.run(method="zeroshot")) == figures(fresh)


@pytest.mark.slow
def test_images_that_are_the_same_cost_nothing(place: Place) -> None:
    """Copied anew, as after moving to another disk: other times, the same bytes."""
    place.run()
    before = place.states()
    for image in sorted((place.folder / "birds").rglob("*.png")):
        os.utime(image, (1, 1))
    place.run()
    assert place.states() == before


# Datasets of plugins --------------------------------------------------------------------------------------------------

OWLS = '''"""Owls, in a file of their own.

Split by nobody.
"""

from promptbench.data.dataset import Dataset, DatasetInfo


class Owls(Dataset):
    """Two classes."""

    info = DatasetInfo(title="Owls", classes=2, template="TEMPLATE", folder="owls", split_file="split.json")
'''


class Owls(Place):
    """A dataset whose code and split file are the user's."""

    def __init__(self, folder: Path, backbone: str) -> None:
        super().__init__(folder, backbone, dataset="owls")
        self.plugin, self.split = folder / "owls.py", folder / "owls" / "split.json"
        make_fake.make_folder(folder / "owls", CLASSES, 6)
        rows: dict[str, list[list[Any]]] = {"train": [], "val": [], "test": []}
        for label, name in enumerate(CLASSES):
            for index in range(6):
                rows["train" if index < 3 else "test"].append([f"{name}/{index:02d}.png", label, name])
        self.split.write_text(json.dumps(rows), encoding="utf-8")
        self.write("a photo of a {}.")

    def write(self, template: str) -> None:
        """The plugin, as a process that starts afterwards finds it."""
        self.plugin.write_text(OWLS.replace("TEMPLATE", template), encoding="utf-8")
        sys.modules.pop("promptbench_plugin.datasets.owls", None)

    def words(self, *more: str, output: str = "out", method: str = "coop") -> list[str]:
        own = ("--plugin", str(self.plugin), "--data-root", str(self.folder))
        return super().words(*own, *more, output=output, method=method)


@pytest.fixture
def owls(tmp_path: Path, tiny_name: str, monkeypatch: pytest.MonkeyPatch) -> Owls:
    monkeypatch.setenv("PROMPTBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(registry, "_files", {kind: {} for kind in ("methods", "datasets", "protocols")})
    monkeypatch.delitem(sys.modules, "promptbench_plugin.datasets.owls", raising=False)
    return Owls(tmp_path, tiny_name)


def test_an_edited_split_file_makes_new_figures(owls: Owls) -> None:
    before = owls.run()
    rows = json.loads(owls.split.read_text(encoding="utf-8"))
    rows["test"] = rows["test"][:-2]
    owls.split.write_text(json.dumps(rows), encoding="utf-8")
    fresh = owls.run(output="fresh")
    must_differ(fresh, before)
    assert figures(owls.run()) == figures(fresh)


def test_an_edited_template_makes_new_figures(owls: Owls) -> None:
    before = owls.run(method="zeroshot")
    owls.write("a blurred sculpture of two large {}s.")
    fresh = owls.run(output="fresh", method="zeroshot")
    must_differ(fresh, before)
    assert figures(owls.run(method="zeroshot")) == figures(fresh)


@pytest.mark.slow
def test_a_training_with_another_template_is_not_used(owls: Owls) -> None:
    """A method that learns towards the dataset's own template."""
    settings = ("--set", "promptsrc.teacher=dataset", "promptsrc.epochs=2")
    before = owls.run(*settings, method="promptsrc")
    owls.write("a blurred sculpture of two large {}s.")
    owls.result_file(method="promptsrc").unlink()
    fresh = owls.run(*settings, output="fresh", method="promptsrc")
    must_differ(fresh, before)
    assert figures(owls.run(*settings, method="promptsrc")) == figures(fresh)


# What is remembered of weights ----------------------------------------------------------------------------------------


def other_digit(memo: bytes) -> bytes:
    return (b"1" if memo[:1] == b"0" else b"0") + memo[1:]


@pytest.mark.parametrize(
    "damage",
    slow_but(
        [
            other_digit,
            lambda memo: memo[:64] + b"!" + memo[65:],
            lambda memo: memo[:-9] + other_digit(memo[-9:]),
            lambda memo: memo[:129],
            lambda memo: memo[:64],
            lambda memo: memo[:65] + memo[130:],  # as earlier versions wrote them
            lambda memo: b"",
            lambda memo: b"\xff" + memo[1:],
        ],
        other_digit,
    ),
    ids=["digit", "blank", "checksum", "unchecked", "cut", "older", "empty", "no text"],
)
def test_a_damaged_memo_of_weights_costs_no_run(place: Place, damage: Callable[[bytes], bytes]) -> None:
    place.run()
    before, (memo,) = place.states(), (place.folder / "cache" / "weights").iterdir()
    content = memo.read_bytes()
    memo.write_bytes(damage(content))
    place.run()
    assert place.states() == before
    assert memo.read_bytes() == content  # computed again


@pytest.mark.slow
def test_a_memo_of_other_files_is_none_of_these(place: Place) -> None:
    """A whole one, but under the name of another state of the files."""
    place.run()
    before, (memo,) = place.states(), (place.folder / "cache" / "weights").iterdir()
    assert [len(word) for word in memo.read_text().split()] == [64, 72, 64]  # the second says what facts
    from promptbench.runs.session import _checksum

    foreign = memo.with_name("0" * 32)
    digests = ("1" * 64, "2" * 64)
    memo.write_text(f"{' '.join(digests)} {_checksum(foreign, *digests)}\n")
    place.run()
    assert place.states() == before


# Stored trainings -----------------------------------------------------------------------------------------------------


def flip(path: Path, where: bytes, bit: int = 1) -> None:
    """Change one bit of the last byte of some text in a file's header, which stays readable."""
    data = bytearray(path.read_bytes())
    end = 8 + int.from_bytes(data[:8], "little")
    assert data[:end].count(where) >= 1, where
    data[data.index(where) + len(where) - 1] ^= bit
    path.write_bytes(data)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() and list(file.keys())


@pytest.mark.parametrize(
    "where",
    slow_but(
        [
            b"seconds",  # of the training: no outcome has a field of that name
            b"losses",
            b'\\"ce\\": 0.6',  # a loss that would be printed
            b'\\"lr\\": 0.0',
            b'\\"names\\": [\\"r',
            b'"weights_hash":"\\"',
            b'"sha256":"',
            b'"metadata_sha256',
            b'"outcome',
            b'"format',
            b'"promptbench/',
        ],
        b"losses",
        b'"sha256":"',
    ),
    ids=lambda where: "".join(filter(str.isalnum, where.decode())),
)
def test_a_damaged_training_is_done_afresh(place: Place, where: bytes) -> None:
    clean = place.run()
    path = place.training()
    learned = load_file(path)
    if where[-1:] in b'"/':
        data = path.read_bytes()
        where = data[data.index(where) :][: len(where) + 1]
    flip(path, where)
    place.result_file().unlink()
    now = place.run()
    assert figures(now) == figures(clean)
    assert equal(load_file(place.training()), learned)
    read_training(place.training())  # which is whole again


@pytest.mark.slow
def test_no_changed_byte_of_a_training_goes_unnoticed(place: Place, tmp_path: Path) -> None:
    """A third of the header, and some of the tensors."""
    place.run()
    data = place.training().read_bytes()
    tensors, about = read_training(place.training())
    end = 8 + int.from_bytes(data[:8], "little")
    copy = tmp_path / "copy.safetensors"
    for index in [*range(8, end, 3), *range(end, len(data), 97)]:
        damaged = bytearray(data)
        damaged[index] ^= 1
        copy.write_bytes(damaged)
        try:
            found, said = read_training(copy)
        except Exception:
            continue
        assert said == about and equal(found, tensors), index


def test_a_damaged_training_alone_is_refused(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """What it says of classes and settings is used before its tensors are."""
    place.run()
    flip(place.training(), b'\\"names\\": [\\"r')
    capsys.readouterr()
    image = next((place.folder / "birds").rglob("*.png"))
    assert main(["predict", "--run", str(place.training()), str(image)]) == 2
    assert "is damaged (what it says of its tensors is not what was written)" in capsys.readouterr().err


def equal(some: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in others)


@pytest.mark.parametrize(
    "change", slow_but(["missing", "shape", "type", "losses", "seconds", "nothing"], "missing", "nothing")
)
def test_nothing_is_loaded_before_all_was_checked(place: Place, tiny: Any, tmp_path: Path, change: str) -> None:
    """Files of earlier versions say nothing of their bytes; theirs too is taken whole or not at all."""
    place.run("--set", "cocoop.epochs=1", method="cocoop")
    tensors, about = read_training(place.training())
    assert len(tensors) > 1
    last = sorted(tensors)[-1]
    if change == "missing":
        del tensors[last]
    elif change == "shape":
        tensors[last] = tensors[last][:1].clone()
    elif change == "type":
        tensors[last] = tensors[last].int()
    outcome = json.loads(about["outcome"])
    outcome |= {"losses": {"losses": 7}, "seconds": {"seconds": "long"}}.get(change, {})
    older = tmp_path / "older.safetensors"
    save_file(tensors, older, metadata={"format": about["format"], "outcome": json.dumps(outcome)})
    method: Method = promptbench.create_method("cocoop", tiny, CLASSES, seed=5)
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    loaded = load_training(older, method)
    assert (loaded is None) == (change != "nothing")
    assert equal(dict(method.state_dict()), before if loaded is None else tensors)


def test_a_format_has_the_keys_that_it_is_checked_for(place: Place) -> None:
    place.run()
    assert set(read_training(place.training())[1]) == trainings._SAID


# Memory ---------------------------------------------------------------------------------------------------------------

HUNGRY = '''"""Hungry: zero-shot CLIP that needs much memory for a moment."""

import torch

from promptbench.method import Method


class Hungry(Method):
    """Nothing learned."""

    trains = False

    def set_classes(self, names):
        super().set_classes(names)
        self.tokens = self.backbone.embed_text([f"a photo of a {name}." for name in names])
        assert torch.ones(MIB, 2**18).sum() > 0

    def forward(self, images):
        text = self.backbone.encode_text(self.tokens.embeddings, self.tokens.eot)
        return self.classify(self.backbone.encode_image(images).cls, text)
'''
MIB = 300


@pytest.fixture
def hungry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(registry, "_files", {kind: {} for kind in ("methods", "datasets", "protocols")})
    monkeypatch.delitem(sys.modules, "promptbench_plugin.methods.hungry", raising=False)
    plugin = tmp_path / "hungry.py"
    plugin.write_text(HUNGRY.replace("MIB", str(MIB)), encoding="utf-8")
    return plugin


@pytest.mark.slow
def test_memory_is_that_of_the_run(place: Place, hungry: Path) -> None:
    """Nothing of what an earlier run in the process took: coop after hungry, as coop before."""
    first = place.run(output="alone")
    place.run("--plugin", str(hungry), method="hungry")
    place.run()
    if not peak_memory_restarts("cpu"):
        pytest.skip("this system does not let a process forget its highest memory")
    taken = [result["cost"]["peak_memory_mb"] for result in (first, place.result(method="hungry"), place.result())]
    before, most, after = taken
    assert most > before + 0.8 * MIB, taken
    assert abs(after - before) < 0.2 * MIB, taken


@pytest.mark.slow
def test_memory_is_left_out_where_it_would_be_an_earlier_runs(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numerics, "CLEAR", place.folder / "no folder" / "clear_refs")
    numerics._forgets.cache_clear()
    try:
        cost = place.run()["cost"]
        assert numerics.peak_memory("cpu") > 2**20
    finally:
        numerics._forgets.cache_clear()
    assert "peak_memory_mb" not in cost and cost["eval_seconds"] > 0
    assert main(["report", "--results", str(place.folder / "out"), "--output", str(place.folder / "report.html")]) == 0
