"""Exported prompts: what the folder holds, that plain open_clip can use it, and the way to the hub and back."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import make_fake
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import promptbench as pb
from promptbench.checkpoints import export
from promptbench.checkpoints.load import Trained
from promptbench.cli.main import main
from promptbench.config import UsageError
from promptbench.results.result import read_result

FILES = ["README.md", "classes.json", "prompts.safetensors", "result.json", "text_features.safetensors"]
WITHOUT_PROMPTBENCH = "import sys\nsys.modules['promptbench'] = None\n"
SAVING = "\nfrom safetensors.torch import save_file\nsave_file({'logits': logits}, 'logits.safetensors')\n"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def clip(tiny_name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the config of a small CLIP and, in a file, random weights."""
    folder = tmp_path_factory.mktemp("clip")
    shutil.copy(tiny_name.removesuffix(":random"), folder / "tiny-clip.json")
    state = pb.load_backbone(tiny_name).clip.state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "weights.safetensors")
    return folder


@pytest.fixture(scope="module")
def runs(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Result file by method, of one call of `run` on three classes of ten images."""
    folder = tmp_path_factory.mktemp("runs")
    make_fake.make_folder(folder / "birds")
    backbone = f"{clip / 'tiny-clip.json'}:{clip / 'weights.safetensors'}"
    call = ["run", "--backbone", backbone, "--dataset", f"folder:{folder / 'birds'}", "--shots", "2", "--threads", "1"]
    call += ["--protocol", "base2new"]
    call += ["--method", "coop", "vpt", "cocoop", "--seeds", "1", "--set", "coop.epochs=2", "vpt.epochs=1"]
    assert main([*call, "cocoop.epochs=1", "cocoop.batch=4", "--output", str(folder / "runs")]) == 0

    def find(method: str) -> Path:
        (path,) = (folder / "runs" / "results" / "base2new" / "birds").glob(f"{method}-*.json")
        return path

    return find


@pytest.fixture(scope="module")
def coop(runs: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an exported CoOp."""
    folder = tmp_path_factory.mktemp("out") / "coop"
    assert main(["export", "--run", str(runs("coop")), "-o", str(folder)]) == 0
    return folder


@pytest.fixture
def noise() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def text_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


@torch.no_grad()
def logits(trained: Trained, pixels: torch.Tensor) -> torch.Tensor:
    trained.set_classes()
    return trained.method(pixels).logits


def refused(action: Callable[[], object]) -> str:
    with pytest.raises(UsageError) as caught:
        action()
    return str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("method, classes", [("coop", ()), ("coop", ("--classes", "cat,dog,owl")), ("zeroshot", ())])
def test_the_code_of_the_card_gives_the_same_logits_without_promptbench(
    method: str, classes: tuple[str, ...], runs: Callable[[str], Path], clip: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    classes = classes or (("--classes", "blue_jay,robin,wren") if method == "zeroshot" else ())
    assert main(["export", "--run", str(runs(method)), "-o", str(folder), *classes]) == 0
    code = text_of(folder).partition("```python\n")[2].partition("```")[0]
    assert "promptbench" not in code and len(code.splitlines()) <= 14
    for name in ("tiny-clip.json", "weights.safetensors"):
        shutil.copy(clip / name, folder)
    make_fake.write_image(tmp_path / "robin" / "00.png", size=(50, 37))
    Image.open(tmp_path / "robin" / "00.png").save(folder / "image.jpg")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PROMPTBENCH + code + SAVING], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    trained = pb.load(folder, device="cpu")
    pixels = trained.transform(Image.open(folder / "image.jpg").convert("RGB")).unsqueeze(0)
    found, expected = load_file(folder / "logits.safetensors")["logits"], logits(trained, pixels)
    assert found.shape == (1, 3 if classes else 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert done.stdout.strip() == trained.classify(folder / "image.jpg")[0][0][0]


def test_an_exported_folder_stands_alone(
    coop: Path, runs: Callable[[str], Path], tmp_path: Path, noise: torch.Tensor
) -> None:
    assert names(coop) == FILES
    assert len({path.stat().st_mode for path in coop.iterdir()}) == 1  # as readable as the rest
    moved = shutil.copytree(coop, tmp_path / "moved")
    trained, run = pb.load(moved), pb.load(runs("coop"))
    assert trained.result == run.result == read_result(runs("coop"))
    assert (moved / "result.json").read_bytes() == runs("coop").read_bytes()
    assert trained.class_names == run.class_names == ("blue_jay", "robin")
    assert torch.equal(logits(trained, noise), logits(run, noise))
    text = load_file(moved / "text_features.safetensors")["text_features"]
    assert text.shape == (2, 32) and text.dtype == torch.float32
    torch.testing.assert_close(text.norm(dim=-1), torch.ones(2))
    again = export.export(trained, tmp_path / "again")
    assert {name: (again / name).read_bytes() for name in FILES} == {
        name: (moved / name).read_bytes() for name in FILES
    }


def test_other_classes_are_exported_and_come_back(runs: Callable[[str], Path], tmp_path: Path) -> None:
    folder = export.export(pb.load(runs("coop")), tmp_path / "out", ["cat", "snowy_owl", "dog"])
    assert json.loads((folder / "classes.json").read_text())["names"] == ["cat", "snowy_owl", "dog"]
    trained = pb.load(folder)
    assert trained.class_names == ("cat", "snowy_owl", "dog") and trained.trained_on == ("blue_jay", "robin")
    assert "3, in the order of `classes.json`: cat, snowy_owl, dog. They are others than those of" in text_of(folder)


def test_the_card_says_what_was_trained_and_measured(coop: Path, runs: Callable[[str], Path]) -> None:
    result, text = read_result(runs("coop")), text_of(coop)
    assert text.startswith("---\nlibrary_name: promptbench\n")
    for fact in (
        "arXiv:2109.01134",
        "https://github.com/KaiyangZhou/CoOp",
        "birds, 2 classes, 2 images of each drawn by `coop` (4 in all)",
        "epochs=2",
        "1 for the images, 1 for the training",
        "`tiny-clip.json:weights.safetensors`, SHA-256 of the weights " + result.spec.weights_hash,
        "the protocol `base2new` of the suite `mini`",
        f"torch {result.versions['torch']}",
        "No terms of the images of birds are known.",
        export.MARKS["ours"],
    ):
        assert fact in text, fact
    assert len(result.metrics) >= 3
    for name, value in result.metrics.items():
        assert f"| {name} | {value:.2f} |" in text
    assert "§" not in text and str(runs("coop").parents[4]) not in text  # no folder of this machine


def test_the_card_carries_marks_and_terms(runs: Callable[[str], Path]) -> None:
    result = read_result(runs("coop"))
    marked = replace(
        result,
        conditions={**result.conditions, "reconstructed": True},
        spec=replace(result.spec, recipe={**result.spec.recipe, "origin": "transferred"}),
    )
    assert [text[:1] for text in export.marks(marked)] == ["§", "†"]
    assert export.terms(replace(result.spec, dataset="dtd")).startswith("The images of dtd: for research.")


@pytest.mark.parametrize(
    "method, config, shape, plain",
    [
        ("zeroshot", {}, (3, 32), True),
        ("coop", {"class_token_position": "middle"}, (3, 32), True),
        ("dpl", {"modality": "text"}, (3, 32), True),
        ("dpl", {}, (3, 32), False),
        ("vpt", {}, (3, 32), False),
        ("maple", {}, (3, 32), False),
        ("gallop", {}, (8, 3, 32), False),
        ("cocoop", {}, None, False),
        ("mutual", {}, None, False),
    ],
)
def test_which_methods_plain_open_clip_can_run(
    method: str, config: dict[str, Any], shape: tuple[int, ...] | None, plain: bool, tiny: Any
) -> None:
    made = pb.create_method(method, tiny, ["cat", "dog", "owl"], **config)
    text = export.text_features(made)
    assert (None if text is None else tuple(text.shape)) == shape
    assert export.scores_as_clip(made, text) is plain


@pytest.mark.slow
@pytest.mark.parametrize(
    "method, files, said",
    [
        ("vpt", FILES, "Plain open_clip cannot run it: what it learned changes the image tower too (visual prompts)."),
        ("cocoop", FILES[:-1], "Plain open_clip cannot run it: its text depends on the image"),
    ],
)
def test_the_card_says_where_plain_open_clip_cannot_help(
    method: str, files: list[str], said: str, runs: Callable[[str], Path], tmp_path: Path, noise: torch.Tensor
) -> None:
    folder = export.export(pb.load(runs(method)), tmp_path / method)
    assert names(folder) == files
    assert said in text_of(folder) and "open_clip.create_model" not in text_of(folder)
    assert torch.equal(logits(pb.load(folder), noise), logits(pb.load(runs(method)), noise))


@pytest.mark.parametrize(
    "name, line",
    [
        ("mini", 'model = promptbench.load_backbone("mini").clip'),
        ("ViT-B-16:openai", 'model = open_clip.create_model("ViT-B-16", pretrained="openai", QUICK).eval()'),
        ("RN50-quickgelu:/w/a.pt", 'model = open_clip.create_model("RN50-quickgelu", pretrained="a.pt", QUICK).eval()'),
    ],
)
def test_the_card_makes_the_model_with_the_activation_of_its_weights(name: str, line: str, tiny: Any) -> None:
    named = pb.Backbone(tiny.clip, tiny.tokenizer, name=name)  # tiny has QuickGELU
    assert export.model_lines(named)[-1] == line.replace("QUICK", "force_quick_gelu=True")


def test_a_folder_is_replaced_by_force_and_only_if_it_is_an_export(
    runs: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    assert main(["export", "--run", str(runs("coop")), "-o", str(folder)]) == 0  # an empty one is taken
    call = ["export", "--run", str(runs("cocoop")), "-o", str(folder)]
    capsys.readouterr()
    assert main(call) == 2
    assert "is not empty; name another folder, or replace an earlier export with --force" in capsys.readouterr().err
    assert names(folder) == FILES
    assert main([*call, "--force"]) == 0
    assert names(folder) == FILES[:-1] and "CoCoOp" in text_of(folder)
    (folder / "thesis.tex").write_text("years of work")
    assert main([*call, "--force"]) == 2
    assert "holds what no export has written (thesis.tex)" in capsys.readouterr().err
    assert (folder / "thesis.tex").read_text() == "years of work" and names(tmp_path) == ["out"]


def test_what_fails_half_way_leaves_the_earlier_export(
    runs: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = pb.load(runs("coop"))
    folder = export.export(trained, tmp_path / "out")
    before = {name: (folder / name).read_bytes() for name in names(folder)}
    monkeypatch.setattr(export, "card", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    for target in (folder, tmp_path / "new"):
        with pytest.raises(KeyboardInterrupt):
            export.export(trained, target, ["cat", "dog"], force=True)
    assert names(tmp_path) == ["out"]
    assert {name: (folder / name).read_bytes() for name in names(folder)} == before


def test_a_training_without_its_result_is_no_export(runs: Callable[[str], Path], tmp_path: Path) -> None:
    key = read_result(runs("coop")).conditions["training_key"]
    training = runs("coop").parents[3] / "trainings" / f"{key[:32]}.safetensors"
    said = refused(lambda: export.export(pb.load(training), tmp_path / "out"))
    assert said.endswith("says nothing of what was measured, which the card states; name the result file.")


class FakeApi:
    """The hub, as far as it is used: it keeps what it is given."""

    calls: list[tuple[str, dict[str, Any]]] = []

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.calls.append(("create_repo", {"repo_id": repo_id, **options}))

    def upload_folder(self, **options: Any) -> None:
        held = {path.name: path.read_bytes() for path in Path(options["folder_path"]).iterdir()}
        self.calls.append(("upload_folder", {**options, "held": held}))


@pytest.mark.slow
def test_to_the_hub_and_back(
    clip: Path,
    coop: Path,
    runs: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    noise: torch.Tensor,
) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", FakeApi)
    monkeypatch.setattr(FakeApi, "calls", [])
    assert main(["export", "--run", str(runs("coop")), "--to", "hf://ann/coop-birds"]) == 0
    first_line, last_line = capsys.readouterr().out.splitlines()
    assert last_line == "uploaded to hf://ann/coop-birds"
    said = ", ".join(
        map(str, (clip / "tiny-clip.json", clip / "weights.safetensors", runs("coop").parents[4] / "birds"))
    )
    assert first_line == f"result.json names paths of this machine: {said}"
    (first, created), (second, sent) = FakeApi.calls
    assert (first, created) == ("create_repo", {"repo_id": "ann/coop-birds", "exist_ok": True})
    assert (second, sent["repo_id"], sent["revision"]) == ("upload_folder", "ann/coop-birds", None)
    assert sent["held"].keys() == set(sent["allow_patterns"]) == set(sent["delete_patterns"]) == set(FILES)
    assert sent["held"]["prompts.safetensors"] == (coop / "prompts.safetensors").read_bytes()

    asked: list[tuple[str, str | None]] = []

    def snapshot_download(repo_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repo_id, revision))
        folder = tmp_path / "snapshot"
        folder.mkdir()
        for name in allow_patterns:
            (folder / name).write_bytes(sent["held"][name])
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    trained = pb.load("hf://ann/coop-birds@v1")
    assert asked == [("ann/coop-birds", "v1")]
    assert torch.equal(logits(trained, noise), logits(pb.load(runs("coop")), noise))


def test_the_hub_out_of_reach_is_one_sentence(
    runs: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled

    def offline(*_: Any, **__: Any) -> None:
        raise OfflineModeIsEnabled("Cannot reach it: offline mode is enabled.\nMore.")

    def no_token(*_: Any, **__: Any) -> None:
        raise LocalTokenNotFoundError("Token is required, but no token found.\nMore.")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    assert refused(lambda: pb.load("hf://ann/coop")) == (
        "hf://ann/coop could not be fetched (OfflineModeIsEnabled); check the name and the network, and log in with "
        "`hf auth login` if it is private."
    )
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: SimpleNamespace(create_repo=no_token))
    folder = tmp_path / "out"
    assert main(["export", "--run", str(runs("coop")), "-o", str(folder), "--to", "hf://ann/coop"]) == 2
    captured = capsys.readouterr()
    assert "hf://ann/coop could not be written (LocalTokenNotFoundError)" in captured.err
    assert len(captured.err.splitlines()) == 1 and names(folder) == FILES  # what was written stays
    for words, said in ((["--to", "ann/coop"], "write hf://user/name"), ([], "needs a folder to write, -o DIR")):
        assert main(["export", "--run", str(runs("coop")), *words]) == 2
        assert said in capsys.readouterr().err
    assert "is no place on the Hugging Face hub" in refused(lambda: pb.load("hf://ann"))
