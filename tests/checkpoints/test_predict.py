"""Using what a run has learned: `promptbench.load` and `promptbench predict`."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import promptbench as pb
from promptbench import registry
from promptbench.checkpoints.load import Trained
from promptbench.cli.main import main
from promptbench.config import UsageError
from promptbench.results.predictions import Predictions, load_predictions
from promptbench.results.result import predictions_path, read_result

BATCH = ("coop.batch=4", "maple.batch=4", "cocoop.batch=4")
EPOCHS = ("coop.epochs=2", "maple.epochs=1", "cocoop.epochs=1")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def runs(birds: Path, tiny_name: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Result file by label, of a first call of `run`; `csc` is CoOp with a context for every class."""
    output = tmp_path_factory.mktemp("runs")
    call = ["run", "--backbone", tiny_name, "--dataset", f"folder:{birds}", "--shots", "2", "--threads", "1"]
    call += ["--protocol", "base2new"]
    call += ["--seeds", "1", "--save-predictions"]
    methods = ["--method", "coop", "maple", "cocoop", "linear_probe", "tip_adapter", "tip_adapter_f"]
    methods += ["--set", *EPOCHS, *BATCH, "tip_adapter_f.epochs=2", "tip_adapter_f.search=few"]
    assert main([*call, *methods, "--output", str(output / "first")]) == 0
    bound = ["--method", "coop", "--set", "coop.csc=true", "coop.ctx_init=", "coop.n_ctx=2", *EPOCHS[:1], *BATCH[:1]]
    assert main([*call, *bound, "--output", str(output / "csc")]) == 0

    def find(label: str) -> Path:
        folder, name = ("csc", "coop") if label == "csc" else ("first", label)
        (path,) = (output / folder / "results" / "base2new" / "birds").glob(f"{name}-*.json")
        return path

    return find


@pytest.fixture(scope="module")
def coop(runs: Callable[[str], Path]) -> Trained:
    return pb.load(runs("coop"), device="cpu")


@pytest.fixture
def noise() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def training_of(result: Path) -> Path:
    key = read_result(result).conditions["training_key"]
    return result.parents[3] / "trainings" / f"{key[:32]}.safetensors"


def rewritten(training: Path, copy: Path, **metadata: str | None) -> Path:
    """A copy of a training file with other metadata, as earlier versions wrote them; None takes one away."""
    with safe_open(training, framework="pt") as file:
        about = {**file.metadata(), "metadata_sha256": None, **metadata}
    save_file(load_file(training), copy, metadata={name: text for name, text in about.items() if text is not None})
    return copy


def spec_of(result: Path, **changes: str) -> str:
    """The spec of a result, changed, as a training file holds it."""
    return json.dumps({**asdict(read_result(result).spec), **changes})


@torch.no_grad()
def logits(trained: Trained, pixels: torch.Tensor) -> torch.Tensor:
    trained.set_classes()
    return trained.method(pixels).logits


@pytest.mark.parametrize(
    "label, evaluation",
    [
        *itertools.product(["coop", "maple", "cocoop", "zeroshot"], ["base", "new"]),
        ("csc", "base"),
        ("tip_adapter_f", "base"),
    ],
)
def test_a_loaded_method_scores_images_as_its_run_did(
    label: str, evaluation: str, runs: Callable[[str], Path], birds: Path
) -> None:
    path = runs(label)
    stored = load_predictions(predictions_path(path.parents[3], read_result(path).spec))[evaluation]
    trained = pb.load(path)
    known = label != "zeroshot" and evaluation == "base"
    ranked = trained.classify([birds / image for image in stored.images], None if known else stored.class_names)
    assert len(ranked) == len(stored.images) and len(stored.images) > 0
    for found, expected in zip(ranked, stored.logits.softmax(dim=-1), strict=True):
        values = [value for _, value in found]
        assert values == sorted(values, reverse=True) and sum(values) == pytest.approx(1, abs=1e-5)
        wanted = dict(zip(stored.class_names, expected.tolist(), strict=True))
        assert dict(found) == pytest.approx(wanted, abs=1e-3)  # stored logits are rounded to half precision


@pytest.fixture(scope="module")
def worded(birds: Path, tiny_name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result file of a CoOp that starts from the words of the dataset."""
    output = tmp_path_factory.mktemp("worded")
    call = ["run", "--backbone", tiny_name, "--dataset", f"folder:{birds}", "--shots", "2", "--threads", "1"]
    call += ["--protocol", "base2new"]
    words = ["birds.template=an etching of a {} bird.", "coop.ctx_init=dataset", *EPOCHS[:1], *BATCH[:1]]
    call += ["--seeds", "1", "--save-predictions", "--method", "coop", "--set", *words]
    assert main([*call, "--output", str(output)]) == 0
    (path,) = (output / "results" / "base2new" / "birds").glob("coop-*.json")
    return path


def scores_as(trained: Trained, stored: Predictions, birds: Path, template: str) -> bool:
    """Whether it says of the stored images what is stored, its class names coming with another dataset's template."""
    names = pb.ClassNames(stored.class_names, template=template)
    found = trained.classify([birds / image for image in stored.images], names)
    ordered = torch.tensor([[dict(ranked)[name] for name in names] for ranked in found])
    return torch.allclose(ordered, stored.logits.float().softmax(dim=-1), atol=1e-3)


def test_what_started_from_the_dataset_keeps_its_sentence(worded: Path, birds: Path, tmp_path: Path) -> None:
    result = read_result(worded)
    assert (result.spec.config["ctx_init"], result.spec.config["n_ctx"]) == ("dataset", None)
    stored = load_predictions(predictions_path(worded.parents[3], result.spec))
    assert main(["export", "--run", str(worded), "-o", str(tmp_path / "out")]) == 0
    for source in (worded, training_of(worded), tmp_path / "out"):
        trained = pb.load(source, device="cpu")
        assert (trained.method.config.ctx_init, len(trained.method.ctx)) == ("an etching of a {} bird.", 4)
        for evaluation in ("base", "new"):
            assert scores_as(trained, stored[evaluation], birds, "{}, as another dataset says it.")


def test_what_started_from_the_dataset_is_evaluated_in_its_sentence_elsewhere(worded: Path, birds: Path) -> None:
    assert main(["eval", "--run", str(worded), "--protocol", "few_shot", "--save-predictions"]) == 0
    (path,) = (worded.parents[3] / "results" / "few_shot" / "birds").glob("coop-*.json")
    stored = load_predictions(predictions_path(worded.parents[3], read_result(path).spec))["test"]
    assert scores_as(pb.load(worded, device="cpu"), stored, birds, "an etching of a {} bird.")


def test_result_and_training_file_give_the_same_bits(
    coop: Trained, runs: Callable[[str], Path], noise: torch.Tensor
) -> None:
    alone = pb.load(str(training_of(runs("coop"))))
    assert alone.result is None and coop.result is not None
    assert alone.class_names == coop.class_names == ("blue_jay", "robin")
    assert alone.class_names.template == "a photo of a {}."
    assert torch.equal(logits(alone, noise), logits(coop, noise))
    assert (alone.spec.method, alone.spec.train_seed) == ("coop", 1)


def test_what_was_learned_is_what_is_loaded(coop: Trained, runs: Callable[[str], Path]) -> None:
    stored = load_file(training_of(runs("coop")))
    assert torch.equal(coop.method.state_dict()["ctx"], stored["ctx"])
    start = pb.create_method("coop", coop.method.backbone, ["cat"]).state_dict()["ctx"]
    assert not torch.allclose(stored["ctx"], start)


def test_paths_images_and_tensors_are_the_same(coop: Trained, birds: Path) -> None:
    paths = [birds / "robin" / "00.png", birds / "wren" / "01.png"]
    images = [Image.open(path) for path in paths]
    pixels = torch.stack([coop.transform(image.convert("RGB")) for image in images])
    expected = coop.classify(paths)
    assert coop.classify([str(path) for path in paths]) == expected
    assert coop.classify(images) == coop.classify(iter(images)) == coop.classify(pixels) == expected
    (alone,) = coop.classify(paths[0])
    assert dict(alone) == pytest.approx(dict(expected[0]), abs=1e-5)
    assert coop.classify([]) == []


def test_more_images_than_a_batch_keep_their_order(coop: Trained, birds: Path) -> None:
    paths = sorted(birds.rglob("*.png")) * 2
    assert len(paths) == 60  # a batch is 50
    ranked = coop.classify(paths)
    for first, again in zip(ranked[:30], ranked[30:], strict=True):
        assert dict(first) == pytest.approx(dict(again), abs=1e-5)


def test_other_classes_do_not_stay(coop: Trained, noise: torch.Tensor) -> None:
    before = coop.classify(noise)
    assert {name for name, _ in coop.classify(noise, ["cat", "dog", "eagle owl"])[0]} == {"cat", "dog", "eagle owl"}
    assert coop.classify(noise) == before


def test_a_template_comes_with_class_names(runs: Callable[[str], Path], noise: torch.Tensor) -> None:
    zeroshot = pb.load(runs("zeroshot"))
    names = ["cat", "dog"]
    generic = zeroshot.classify(noise, names)
    assert zeroshot.classify(noise, pb.ClassNames(names, template="a photo of a {}.")) == generic
    assert zeroshot.classify(noise, pb.ClassNames(names, template="an etching, {}")) != generic


def refused(action: Callable[[], object]) -> str:
    with pytest.raises(UsageError) as caught:
        action()
    return str(caught.value)


def test_class_specific_contexts_stay_with_their_classes(runs: Callable[[str], Path], noise: torch.Tensor) -> None:
    trained = pb.load(runs("csc"))
    assert refused(lambda: trained.classify(noise, ["cat", "dog"])) == (
        "coop cannot score other classes than the 2 of its training: class-specific contexts exist for the training "
        "classes only; leave the class names out."
    )
    assert trained.classify(noise, list(trained.class_names)) == trained.classify(noise)


def test_what_cannot_be_used_says_why(
    runs: Callable[[str], Path], noise: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zeroshot = pb.load(runs("zeroshot"))
    assert "stored without class names: give those to score" in refused(lambda: zeroshot.classify(noise))
    older = json.loads(runs("tip_adapter").read_text())
    older["conditions"]["training_key"] = ""  # as earlier versions wrote it
    (tmp_path / "older.json").write_text(json.dumps(older))
    assert "was not stored by the promptbench that ran it" in refused(lambda: pb.load(tmp_path / "older.json"))
    assert "cannot be read" in refused(lambda: pb.load(tmp_path / "nothing.json"))
    assert "cannot be read" in refused(lambda: pb.load(tmp_path / "nothing.safetensors"))
    assert "is no folder of `promptbench export`" in refused(lambda: pb.load(tmp_path))
    moved = tmp_path / "moved.json"
    moved.write_bytes(runs("coop").read_bytes())
    assert "name the training's .safetensors file instead" in refused(lambda: pb.load(moved))
    away = tmp_path / "runs" / "results" / "base2new" / "birds" / runs("coop").name
    away.parent.mkdir(parents=True)
    away.write_bytes(runs("coop").read_bytes())
    assert f"is not in {tmp_path / 'runs'}" in refused(lambda: pb.load(away))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "torch sees no CUDA device here" in refused(lambda: pb.load(runs("coop"), device="cuda"))
    assert "torch sees no CUDA device here" in refused(lambda: pb.load(runs("coop"), device="cuda:0"))
    for device in ("tpu", "", "cuda:x", "cpu:0"):
        assert "--device takes cpu, cuda, cuda:N or auto, not " in refused(
            lambda d=device: pb.load(runs("coop"), device=d)
        )


def test_images_that_do_not_fit_are_refused(coop: Trained, tmp_path: Path) -> None:
    assert "must be (B, 3, 32, 32)" in refused(lambda: coop.classify(torch.zeros(3, 32, 32)))
    assert "not (1, 3, 16, 16)" in refused(lambda: coop.classify(torch.zeros(1, 3, 16, 16)))
    assert "Cannot read the image" in refused(lambda: coop.classify([tmp_path / "none.jpg"]))
    one = torch.zeros(1, 3, 32, 32)
    assert "takes a list of names" in refused(lambda: coop.classify(one, "cat"))
    assert "read the same in a prompt" in refused(lambda: coop.classify(one, ["sea_lion", "sea lion"]))


@pytest.mark.slow
def test_other_weights_are_refused(runs: Callable[[str], Path], tiny_name: str, tmp_path: Path) -> None:
    said = refused(lambda: pb.load(runs("coop"), backbone="mini"))
    assert "was made with other weights (hash" in said and "than 'mini' has here" in said
    assert "was made with other weights" in refused(lambda: pb.load(training_of(runs("coop")), backbone="mini"))
    backbone = pb.load_backbone(tiny_name)
    copy = tmp_path / "copy.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in backbone.clip.state_dict().items()}, copy)
    elsewhere = f"{tiny_name.removesuffix(':random')}:{copy}"
    assert pb.load(runs("coop"), backbone=elsewhere).method.backbone.name == elsewhere  # the same weights, moved
    spec = spec_of(runs("coop"), backbone="gone.json:random")
    lost = rewritten(training_of(runs("coop")), tmp_path / "lost.safetensors", spec=spec)
    assert "if the weights are called otherwise here, say how with --backbone" in refused(lambda: pb.load(lost))


def test_an_older_training_file_loads_with_a_warning(
    runs: Callable[[str], Path], tmp_path: Path, coop: Trained, noise: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    old = rewritten(training_of(runs("coop")), tmp_path / "old.safetensors", weights_hash=None)
    assert not caplog.records
    assert torch.equal(logits(pb.load(old), noise), logits(coop, noise))
    (record,) = caplog.records
    assert "does not say which weights" in record.getMessage()


def test_damaged_foreign_and_newer_files_are_told_apart(runs: Callable[[str], Path], tmp_path: Path) -> None:
    training = training_of(runs("coop"))
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(training.read_bytes()[:-7])
    assert "is no training of promptbench, or is damaged" in refused(lambda: pb.load(cut))
    foreign = tmp_path / "foreign.safetensors"
    save_file({"x": torch.zeros(1)}, foreign)
    assert "is no training of promptbench" in refused(lambda: pb.load(foreign))
    newer = rewritten(training, tmp_path / "newer.safetensors", format="promptbench/2")
    assert "was written by a newer promptbench (promptbench/2)" in refused(lambda: pb.load(newer))
    other = tmp_path / "other.safetensors"
    with safe_open(training, framework="pt") as file:
        save_file({"ctx": torch.zeros(3, 3)}, other, metadata=file.metadata())
    assert "another version of promptbench" in refused(lambda: pb.load(other))


def test_a_plugin_that_is_not_there_is_named(runs: Callable[[str], Path], tmp_path: Path) -> None:
    spec = spec_of(runs("coop"), method="shift", plugin="0" * 64)
    path = rewritten(training_of(runs("coop")), tmp_path / "plugin.safetensors", spec=spec)
    assert "the method 'shift' is a plugin; give its file with --plugin" in refused(lambda: pb.load(path))


PLUGIN = '''"""Shift: one learned number per channel.

A. Author, "Shift", 2026, arXiv:2601.00001.
"""

import torch
from torch import nn

from promptbench.method import Method, Recipe


class Shift(Method):
    """CLIP's image features, stretched."""

    recipes = {("*", "*"): Recipe(epochs=1, lr=0.01, batch=4, origin="ours")}

    def __init__(self, config, backbone):
        super().__init__(config, backbone)
        self.scale = nn.Parameter(torch.ones(backbone.embed_dim))

    def set_classes(self, names):
        super().set_classes(names)
        self.tokens = self.backbone.embed_text([f"a photo of a {name}." for name in names])

    def forward(self, images):
        text = self.backbone.encode_text(self.tokens.embeddings, self.tokens.eot)
        return self.classify(self.backbone.encode_image(images).cls * self.scale, text)
'''


@pytest.mark.slow
def test_a_plugin_is_used_from_its_file_and_warned_of_where_it_changed(
    birds: Path, tiny_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(registry, "_files", {kind: {} for kind in ("methods", "datasets", "protocols")})
    plugin, image = tmp_path / "shift.py", str(birds / "robin" / "00.png")
    plugin.write_text(PLUGIN)
    call = ["run", "--plugin", str(plugin), "--method", "shift", "--backbone", tiny_name, "--threads", "1"]
    call += ["--dataset", f"folder:{birds}", "--shots", "2", "--seeds", "1", "--output", str(tmp_path / "runs")]
    call += ["--protocol", "base2new"]
    assert main(call) == 0
    (result,) = (tmp_path / "runs" / "results" / "base2new" / "birds").glob("shift-*.json")
    predict = ["predict", "--run", str(result), "--plugin", str(plugin), image]
    caplog.clear()
    assert main(predict) == 0 and not caplog.records
    plugin.write_text(PLUGIN + "\n\nSTRENGTH = 2\n")
    assert main(predict) == 0
    assert [record.getMessage() for record in caplog.records] == [
        f"the method 'shift' has changed since {result} was made"
    ]


@pytest.mark.slow
def test_predict_prints_a_table_quietly_and_without_the_trainer(runs: Callable[[str], Path], birds: Path) -> None:
    images = [str(birds / "robin" / "00.png"), str(birds / "wren")]
    code = (
        "import sys\nfrom promptbench.cli.main import main\ncode = main(sys.argv[1:])\n"
        "assert not {'pytorch_lightning', 'sklearn', 'pandas'} & set(sys.modules)\nsys.exit(code)"
    )
    call = ["predict", "--run", str(runs("coop")), "--device", "cpu", "--classes", "blue_jay,robin", *images]
    done = subprocess.run([sys.executable, "-c", code, *call], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.startswith("promptbench: coop was trained at ")
    assert len(done.stderr.splitlines()) == 1
    head, *lines = [line.split() for line in done.stdout.splitlines()]
    assert head == ["image", "class", "probability"] and len(lines) == 2 * 11
    assert [line[0] for line in lines[::2]] == [images[0], *(f"{images[1]}/{i:02d}.png" for i in range(10))]
    for best, second in zip(lines[::2], lines[1::2], strict=True):
        assert {best[1], second[0]} == {"blue_jay", "robin"}
        assert float(best[2]) >= 0.5 and float(best[2]) + float(second[1]) == pytest.approx(1, abs=1e-4)


def test_predict_goes_on_after_an_unreadable_image(
    runs: Callable[[str], Path], birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], coop: Trained
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes((birds / "robin" / "00.png").read_bytes()[:60])
    good = [str(birds / "robin" / f"{index:02d}.png") for index in (3, 4)]
    names = tmp_path / "names.txt"
    names.write_text("cat\n\n dog \nbarn owl, great grey\n", encoding="utf-8")
    call = ["predict", "--run", str(runs("coop")), "--classes-file", str(names), "--format", "jsonl", "--top", "2"]
    assert main([*call, good[0], str(broken), str(tmp_path / "none.png"), good[1], good[0]]) == 1
    captured = capsys.readouterr()
    knowledge, *lines = captured.err.splitlines()
    assert "others are told by the words of their names alone (cat, dog, barn owl, great grey)" in knowledge
    assert [line.startswith("promptbench: Cannot read the image ") for line in lines] == [True, True]
    records = [json.loads(line) for line in captured.out.splitlines()]
    assert [record["image"] for record in records] == good
    expected = coop.classify(good, ["cat", "dog", "barn owl, great grey"])
    for record, ranked in zip(records, expected, strict=True):
        shown = [(item["class"], item["probability"]) for item in record["classes"]]
        assert [name for name, _ in shown] == [name for name, _ in ranked[:2]]
        assert [value for _, value in shown] == pytest.approx([value for _, value in ranked[:2]], abs=1e-5)


@pytest.mark.parametrize(
    "words, said",
    [
        (("--classes", ",", "IMAGE"), "need at least one class name"),
        (("--classes-file", "nowhere.txt", "IMAGE"), "--classes-file nowhere.txt cannot be read"),
        (("EMPTY",), "holds no image"),
        (("--top", "0", "IMAGE"), "takes integers from 1 on"),
        (("--classes", "cat,Cat", "IMAGE"), "read the same in a prompt"),
    ],
)
def test_mistakes_are_one_line(
    words: tuple[str, ...],
    said: str,
    runs: Callable[[str], Path],
    birds: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"IMAGE": str(birds / "robin" / "00.png"), "EMPTY": str(tmp_path)}
    assert main(["predict", "--run", str(runs("coop")), *(places.get(word, word) for word in words)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and said in captured.err and len(captured.err.splitlines()) == 1
