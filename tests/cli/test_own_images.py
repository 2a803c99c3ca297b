"""An owner of images: a folder, what is said of it, short names of results, a quick look, and what predict knows."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import make_fake
import pytest
import torch
from PIL import Image
from short_cases import slow_but

import promptbench as pb
from promptbench import registry
from promptbench.cli.main import main
from promptbench.data.dataset import open_dataset
from promptbench.data.selection import Selection, open_selection, spread
from promptbench.data.splits import Item
from promptbench.results.result import read_results
from promptbench.runs.plan import plan_runs
from promptbench.runs.request import Request

TINY = f"{Path(make_fake.__file__).parent / 'tiny-clip.json'}:random"
SHORT = ("--shots", "2", "--threads", "1", "--seeds", "1")


@pytest.fixture
def icons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four folders of ten icons with transparent corners, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for place, name in enumerate(("anchor", "bell", "key", "lamp")):
        (tmp_path / "icons" / name).mkdir(parents=True)
        for number in range(10):
            icon = Image.new("RGBA", (24, 24), (0, 0, 0, 0))
            icon.paste((60 * place, 200, 20 * number, 255), (6, 6, 18, 18))
            icon.save(tmp_path / "icons" / name / f"{number}.png")
    return tmp_path / "icons"


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Calls the command, which has to do what is asked, and gives what it says besides its output."""

    def call(*words: str, code: int = 0) -> str:
        capsys.readouterr()
        assert main(list(words)) == code
        return capsys.readouterr().err

    return call


def run(*words: str, backbone: str = TINY) -> tuple[str, ...]:
    return ("run", "--dataset", "folder:icons", "--backbone", backbone, *SHORT, *words)


# --- what a run of a folder does


def test_a_folder_is_trained_on_all_classes_with_the_usual_shots() -> None:
    of_folder = Request.of(methods="coop", datasets="folder:icons")
    assert list(of_folder.protocols) == ["few_shot"] and of_folder.suite.few_shots == (of_folder.suite.shots,)
    assert Request.of(methods="coop", datasets="folder:icons", shots=[1, 2]).suite.few_shots == (1, 2)
    assert list(Request.of(methods="coop", datasets="folder:icons", protocol="base2new").protocols) == ["base2new"]
    assert list(Request.of(methods="coop", datasets=["folder:icons", "mini_shapes"]).protocols) == ["base2new"]
    assert list(Request.of(methods="coop").protocols) == ["base2new"]
    assert {run.spec.protocol for run in plan_runs(of_folder)} == {"few_shot"}


def test_the_split_of_a_folder_is_said(icons: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main([*run("--method", "zeroshot")]) == 0
    assert "'icons' was split into 5/2/3 images a class: train/val/test" in caplog.messages
    for name in ("9", "8", "7"):
        (icons / "key" / f"{name}.png").unlink()
    assert open_dataset("folder", {"root": "icons"}).split_made.startswith("4-5/1-2/2-3 images a class")
    make_fake.make_split_folders(icons.parent / "birds", ("crow", "eagle"))
    assert open_dataset("folder", {"root": "birds"}).split_made == ""


def test_mini_says_what_it_knows_and_how_to_take_real_weights(icons: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main([*run("--method", "zeroshot", backbone="mini")]) == 0
    (line,) = [text for text in caplog.messages if "rendered shapes" in text]
    assert "48 x 48 pixels only" in line and "--backbone ViT-B-16-quickgelu:openai" in line
    assert "open_clip fetches once" in line and "https://" in line and "ViT-B-16-quickgelu:/path/to/file" in line
    caplog.clear()
    assert main(["run", "--method", "zeroshot", "--dataset", "mini_fabrics", *SHORT, "--dry-run", "list"]) == 0
    assert main([*run("--method", "zeroshot")]) == 0
    assert "rendered shapes" not in caplog.text


def test_images_of_another_size_are_told_the_right_one() -> None:
    with pytest.raises(pb.UsageError, match="'mini' takes images of 48 x 48 pixels, not 224 x 224: resize and crop"):
        pb.load_backbone("mini").encode_image(torch.zeros(1, 3, 224, 224))


# --- transparency


def test_an_alpha_channel_is_dropped_in_training_evaluation_and_predict_alike(icons: Path) -> None:
    """Transparent parts show the colours beneath them; two icons that differ in alpha alone are one picture."""
    hidden = Image.new("RGBA", (24, 24), (250, 10, 20, 0))
    plain = Image.new("RGB", (24, 24), (250, 10, 20))
    hidden.save(icons / "bell" / "0.png")
    dataset = open_dataset("folder", {"root": str(icons)})
    (item,) = [
        one
        for one in dataset.items("train") + dataset.items("val") + dataset.items("test")
        if one.image == "bell/0.png"
    ]
    assert dataset.open(item).tobytes() == plain.tobytes()
    assert main([*run("--method", "coop", "--set", "epochs=1")]) == 0
    (result,) = [one for one in read_results("promptbench-runs") if one.spec.method == "coop"]
    trained = pb.load(str(result.path))
    assert trained.classify(hidden) == trained.classify(plain) == trained.classify(icons / "bell" / "0.png")


def test_an_alpha_channel_is_spoken_of_once(icons: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main([*run("--method", "zeroshot")]) == 0
    (line,) = [text for text in caplog.messages if "alpha" in text]
    assert line.startswith(
        "images of 'icons' have an alpha channel, which is dropped: transparent parts show the colours"
    )
    caplog.clear()
    for path in icons.rglob("*.png"):
        Image.open(path).convert("RGB").save(path)
    assert main([*run("--method", "zeroshot", "--output", "again")]) == 0
    assert "alpha" not in caplog.text


# --- what predict says, and short names


def test_predict_says_what_it_knows_and_since_when(icons: Path, said: Callable[..., str]) -> None:
    said(*run("--method", "coop", "--set", "epochs=1"))
    found = said("predict", "--run", "latest", "icons/bell/1.png")
    (result,) = [one for one in read_results("promptbench-runs") if one.spec.method == "coop"]
    knows = f"coop was trained at {result.created} under few_shot on 4 classes of 'icons' (anchor, bell, key, lamp)"
    assert f"{knows}, at most 2 images of each; whatever an image shows" in found
    assert "images have an alpha channel" in found and found.count("alpha") == 1
    assert "(cat)" in said("predict", "--run", "latest", "--classes", "bell,cat", "icons/bell/1.png")


@pytest.mark.slow
def test_predict_after_half_of_the_classes_names_the_others_by_their_words(
    icons: Path, said: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    said(*run("--method", "coop", "linear_probe", "--protocol", "base2new", "--set", "epochs=1"))
    assert main(["predict", "--run", "coop", "--format", "jsonl", "icons/key/1.png"]) == 0
    captured = capsys.readouterr()
    assert {one["class"] for one in json.loads(captured.out)["classes"]} == {"anchor", "bell", "key", "lamp"}
    assert "under base2new on 2 of the 4 classes of 'icons' (anchor, bell)" in captured.err
    assert "others are told by the words of their names alone (key, lamp)" in captured.err
    assert main(["predict", "--run", "linear_probe", "--format", "jsonl", "icons/key/1.png"]) == 0
    captured = capsys.readouterr()
    assert {one["class"] for one in json.loads(captured.out)["classes"]} == {"anchor", "bell"}
    assert "on 2 of the 4 classes of 'icons' (anchor, bell)" in captured.err
    assert "the others are unknown to it: whatever an image shows, it gets one of these names" in captured.err


@pytest.mark.slow
def test_results_have_short_names(icons: Path, said: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    said(*run("--method", "coop", "zeroshot", "--set", "epochs=1", "--save-predictions"))
    (result,) = [one for one in read_results("promptbench-runs") if one.spec.method == "coop"]
    stem = result.path.stem  # type: ignore[union-attr]
    photo = "icons/bell/1.png"
    for word in ("latest", "coop", stem[:9], stem):
        assert f"--run {word} is {Path(result.path).resolve()}" in said("predict", "--run", word, photo)  # type: ignore[arg-type]
    assert f"--run coop is {Path(result.path).resolve()}" in said("export", "--run", "coop", "-o", "out")  # type: ignore[arg-type]
    assert "--run coop is" in said("eval", "--run", "coop", "--protocol", "base2new")
    assert "--run latest is" in said("inspect", "--run", "latest")
    assert "--run latest is" in said("predict", "--run", "latest", "--results", "promptbench-runs", photo)
    assert "--run out" not in said("predict", "--run", "out", photo)  # a folder that is there is no short name


def test_short_names_that_mean_nothing_or_several_things(icons: Path, said: Callable[..., str]) -> None:
    said(*run("--method", "zeroshot", "coop", "--set", "epochs=1"))
    several = said("predict", "--run", "zero", "icons/bell/1.png", code=2)
    assert "--run zero: 2 results in promptbench-runs begin so: few_shot/icons/zeroshot" in several
    unknown = said("predict", "--run", "cop", "icons/bell/1.png", code=2)
    assert (
        "--run cop: there is no such file, and no result in promptbench-runs begins so. There are few_shot/" in unknown
    )
    none = said("inspect", "--run", "latest", code=2)
    assert "no result in promptbench-runs has its predictions; make one with --save-predictions" in none
    lacking = said("inspect", "--run", "coop", code=2)
    assert (
        "were not kept; make it again and name the new result: promptbench run" in lacking and "--save-pred" in lacking
    )
    assert all(len(text.splitlines()) == 1 for text in (several, unknown, none))


# --- a quick look


def test_a_limit_is_spread_over_classes_and_the_same_each_time() -> None:
    items = [Item(f"{label}/{n}.png", label, str(label)) for label, n in itertools.product(range(4), range(5))]
    for most, counts in ((20, [5, 5, 5, 5]), (8, [2, 2, 2, 2]), (6, [2, 1, 2, 1]), (2, [1, 0, 1, 0]), (99, [5] * 4)):
        chosen = spread(items, most)
        drawn = Counter(one.label for one in chosen)
        assert [drawn[label] for label in range(4)] == counts
        assert chosen == spread(items, most) and chosen == [one for one in items if one in chosen]
    uneven = [Item("a", 0, "a"), *(Item(f"b{n}", 1, "b") for n in range(9))]
    assert [one.image for one in spread(uneven, 4)] == ["a", "b0", "b1", "b2"]


@pytest.mark.slow
def test_a_limited_run_scores_so_many_images_and_shares_its_training(icons: Path, said: Callable[..., str]) -> None:
    words = run("--method", "coop", "--protocol", "base2new", "--set", "epochs=1")
    said(*words)
    trainings = list(Path("promptbench-runs/trainings").iterdir())
    said(*words, "--limit", "5")
    said(
        "eval",
        "--run",
        str(next(Path("promptbench-runs").rglob("coop-*.json"))),
        "--protocol",
        "few_shot",
        "--limit",
        "3",
    )
    assert list(Path("promptbench-runs/trainings").iterdir()) == trainings
    found = {
        (one.spec.protocol, one.spec.limit): one
        for one in read_results("promptbench-runs")
        if one.spec.method == "coop"
    }
    assert found["base2new", 0].conditions["images"] == {"base": 6, "new": 6, "joint": 12}
    assert found["base2new", 5].conditions["images"] == {"base": 3, "new": 2, "joint": 5}
    assert found["few_shot", 3].conditions["images"] == {"test": 3}
    assert "open_world_auc" in found["base2new", 5].metrics


@pytest.mark.slow
def test_tables_say_a_limit_and_never_mix_it(
    icons: Path, said: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    said(*run("--method", "zeroshot", "--limit", "5"))
    assert main(["table", "--protocol", "few_shot"]) == 0
    assert (
        "A quick look (--limit): at most 5 test images of each dataset were scored, not all" in capsys.readouterr().out
    )
    said(*run("--method", "zeroshot"))
    assert main(["table", "--protocol", "few_shot"]) == 0
    table = capsys.readouterr().out
    assert (
        "Zero-shot CLIP (limit=5)" in table
        and "Zero-shot CLIP (limit=none)" in table
        and "scored in rows that say so" in table
    )
    assert "ask for others that are there, --protocol few_shot" in said("table", code=2)


def test_a_limit_that_leaves_no_image_says_so(icons: Path) -> None:
    dataset = open_dataset("folder", {"root": str(icons)})
    one = Selection(dataset="icons", split="test", classes="new", limit=1)
    with pytest.raises(pb.UsageError, match="no test images of its new classes among the 1 that --limit leaves"):
        open_selection(lambda name: dataset, one, seed=1)


# --- settings of all methods


@pytest.mark.parametrize("name", ["epochs", "*.epochs"])
def test_a_setting_of_all_methods_skips_those_that_lack_it(name: str) -> None:
    request = Request.of(methods=["coop", "maple", "linear_probe"], settings={name: 3, "maple.epochs": 2})
    recipes = {run.spec.method: run.spec.recipe for run in plan_runs(request)}
    assert (recipes["coop"]["epochs"], recipes["maple"]["epochs"], recipes["linear_probe"]) == (3, 2, {})
    deep = Request.of(methods=["coop", "maple"], settings={name.replace("epochs", "depth"): 2})
    assert {run.spec.config.get("depth") for run in plan_runs(deep) if run.spec.method == "maple"} == {2}
    with pytest.raises(pb.UsageError, match="Unknown setting of the methods of this call 'epochs'"):
        Request.of(methods="linear_probe", settings={name: 3})


def test_what_a_recipe_only_says_cannot_be_set_for_all() -> None:
    assert Request.of(methods="coop", settings={"lr": 0.5}).methods[-1].variants == ({"lr": 0.5},)
    with pytest.raises(pb.UsageError, match="Unknown setting of the methods of this call 'origin'"):
        Request.of(methods="coop", settings={"origin": "paper"})


# --- what prepare makes


PREPARING = [name for name in registry.names("methods") if registry.load("methods", name).prepares]


def test_some_methods_prepare() -> None:
    assert {"linear_probe", "tip_adapter"} < set(PREPARING)


@pytest.mark.parametrize("name", slow_but(PREPARING, "tip_adapter"))
def test_a_method_that_prepares_scores_as_its_run_did_without_the_images(name: str, icons: Path) -> None:
    """The images are gone when it is loaded: from its result, from its training file, and as an exported folder."""
    few = "epochs=1" if registry.load("methods", name).trains else "*.views=2" if name == "tip_adapter" else "C=0.3"
    assert main([*run("--method", name, "--set", few, "--save-predictions")]) == 0
    (result,) = [one for one in read_results("promptbench-runs") if one.spec.method == name]
    assert result.path is not None
    stored = pb.load_predictions(Path(f"promptbench-runs/predictions/{result.name}.safetensors"))["test"]
    pictures = [Image.open(icons / image).convert("RGB") for image in stored.images]
    icons.rename(icons.with_name("elsewhere"))
    assert main(["export", "--run", str(result.path), "-o", "out"]) == 0
    (training,) = Path("promptbench-runs/trainings").glob("*.safetensors")
    for source in (result.path, training, "out"):
        trained = pb.load(str(source), device="cpu")
        assert tuple(trained.class_names) == stored.class_names
        pixels = torch.stack([trained.transform(picture) for picture in pictures])
        with torch.no_grad():
            assert torch.allclose(trained.method(pixels).logits, stored.logits, atol=1e-4)
