"""The speed benchmark: both paths say the same, its table follows from its report, its bars from the figures."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from promptbench.benchmarks.speed import __main__ as command
from promptbench.benchmarks.speed import measure, rows, table
from promptbench.benchmarks.speed.evaluations import METHODS, plain_seconds, time_evaluations
from promptbench.benchmarks.speed.plain import PLAIN
from promptbench.benchmarks.speed.steps import Pair, check_equal, floating_point_work, time_group
from promptbench.benchmarks.speed.timing import Matmul, Turns
from shared_paths import REPOSITORY
from torch.utils.data import DataLoader

from promptbench import registry
from promptbench.clip.load import load_backbone
from promptbench.recipe import Recipe, find_recipe
from promptbench.training.fit import fit

MEASURED = REPOSITORY / "results" / "measured" / "speed.json"
TRAINED = tuple(measure.RECIPE_BATCH)


def timed(*seconds: float, first: float = 9.0, peak: float = 0.5) -> dict[str, Any]:
    return {"seconds": list(seconds), "first": first, "peak_gib": peak}


@pytest.fixture
def report() -> dict[str, Any]:
    """A report with round figures, for a CLIP of ViT-B/16's size."""

    def group(method: str, classes: int, **pieces: dict[str, Any]) -> dict[str, Any]:
        named = {name.replace("_", "-"): piece for name, piece in pieces.items()}
        return {"method": method, "classes": classes, "pieces": named, "matmul": [100.0, 200.0, 300.0]}

    coop = group(
        "coop",
        100,
        plain_cached_32=timed(9, 10, 14),
        ours_cached_32=timed(0.4, 0.5, 0.9),
        plain_images_32=timed(20),
        ours_images_32=timed(8),
    )
    fewer = group("coop", 20, plain_cached_32=timed(2), ours_cached_32=timed(0.2))
    more = group("coop", 1000, ours_cached_32=timed(4))
    cocoop = group("cocoop", 100, plain_images_1=timed(15), ours_images_1=timed(1), ours_images_8=timed(6))
    maple = group("maple", 100, plain_images_4=timed(16), ours_images_4=timed(4))
    bill = {"once": 1.0, "images": 4.0, "scores": 2.0, "scored": 2, "of": 10}
    evaluation = {
        "classes": 100,
        "images": 10,
        "batch": 100,
        "seeds": [1, 2, 3],
        "methods": {"coop": {"plain": bill, "ours": [3.0, 1.0, 1.0], "difference": 0.0}},
        "matmul": [210.0],
    }
    found = {
        "main_classes": 100,
        "groups": [fewer, coop, more, cocoop, maple],
        "evaluations": [evaluation],
        "work": {"counted_gflop": 80.0, "useful_gflop": 60.0},
    }
    machine = {
        "processor": "A processor",
        "vector_units": "AVX2",
        "cores": 2,
        "threads": 2,
        "memory_gib": 16,
        "system": "Linux",
        "blas": "MKL",
        "commit": "abc",
        "created": "now",
        "versions": {"torch": "2", "open_clip": "3", "python": "3"},
    }
    return {
        "schema": 1,
        "machine": machine,
        "allocator": "glibc, its default settings",
        "settings": {"matmul": 2048},
        "backbones": {measure.VIT_B16: found},
        "memory": {"gib_over_weights": 1.94},
    }


@pytest.mark.slow
@pytest.mark.parametrize("label", TRAINED)
@pytest.mark.parametrize("classes", [1, 7])
def test_plain_and_ours_have_equal_logits_and_gradients(label: str, classes: int, tiny: Any) -> None:
    found = check_equal(label, tiny, classes, batch=3)
    assert 0 < found["logits"] <= 1e-4  # not the same code on both sides
    assert found["gradients"] <= 1e-4


def test_a_wrong_plain_path_is_noticed(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = PLAIN["coop"].compare
    monkeypatch.setattr(PLAIN["coop"], "compare", lambda self, image, text: right(self, image, text) * 1.01)
    with pytest.raises(AssertionError, match="coop: logits differ"):
        check_equal("coop", tiny, 5, batch=2)


def test_the_plain_path_takes_77_tokens_of_every_class_and_one_image_at_a_time(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = Pair("cocoop", tiny, 5, batch=3)
    block, seen = tiny.clip.transformer.resblocks[-1], []
    forward = block.forward

    def counting(x: Any, **arguments: Any) -> Any:
        seen.append(tuple(x.shape[:2]))
        return forward(x, **arguments)

    monkeypatch.setattr(block, "forward", counting)
    pair.piece("plain-images-3")()
    assert seen == [(5, 77)] * 3


def test_a_step_moves_what_is_learned_and_nothing_else(tiny: Any) -> None:
    frozen = {name: tensor.clone() for name, tensor in tiny.clip.state_dict().items()}
    group = time_group("coop", tiny, 3, ["plain-cached-2", "ours-cached-2"], Turns(Matmul(16), rounds=1, turn=0), 3)
    assert set(group["pieces"]) == {"plain-cached-2", "ours-cached-2"} and len(group["matmul"]) == 6
    pair = Pair("coop", tiny, 3, batch=2)
    before = pair.parameters[0].detach().clone()
    for name in ("plain-cached-2", "ours-cached-2"):
        pair.piece(name)()
    assert not torch.equal(before, pair.parameters[0]) and pair.plain is not None
    assert torch.allclose(pair.parameters[0], pair.plain.learned["ctx"], atol=1e-6)
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in tiny.clip.state_dict().items())


@pytest.mark.parametrize("label", ["coop", "cocoop", "maple"])
def test_our_step_is_the_step_of_training(label: str, tiny: Any, tiny_name: str) -> None:
    pair, other = (Pair(label, backbone, 3, batch=4) for backbone in (tiny, load_backbone(tiny_name)))
    recipe = Recipe(epochs=1, lr=0.002, batch=4, warmup_epochs=0, origin="ours", source="this test")
    batches: Any = DataLoader(
        [(other.images(4, cached=False), other.labels)], batch_size=None, collate_fn=lambda batch: batch
    )
    fit(other.method, recipe, batches, 1, seed=1)
    pair.piece("ours-images-4")()
    for mine, theirs in zip(pair.parameters, other.parameters, strict=True):
        assert torch.equal(mine, theirs)


def test_evaluations_agree_and_every_seed_is_run(tiny: Any) -> None:
    found = time_evaluations(tiny, classes=4, images=5, seeds=(1, 2), matmul=Matmul(16))
    assert tuple(found["methods"]) == METHODS
    for name, method in found["methods"].items():
        assert len(method["ours"]) == 2 and min(method["ours"]) > 0, name
        assert method["plain"]["scored"] == (2 if name == "cocoop" else 5), name
        assert plain_seconds(method["plain"]) > method["plain"]["images"], name
        assert method["difference"] <= 1e-4, name


def test_the_methods_evaluated_never_prompt_the_image_tower() -> None:
    assert all(registry.load("methods", name).frozen_image_tower is True for name in METHODS)


def test_useful_work_is_counted_by_hand(tiny: Any) -> None:
    work = floating_point_work(tiny, classes=2, batch=2)
    # "a photo of a tench.", "... goldfish.": [SOS] and four tokens once, then the name, the full stop and [EOT].
    names = [len(tiny.tokenizer.encode(name)) + 2 for name in ("tench", "goldfish")]
    assert work["useful_gflop"] == pytest.approx(48 * tiny.text_width**2 * tiny.text_depth * (5 + sum(names)) / 1e9)
    assert work["counted_gflop"] > 0


@pytest.mark.parametrize("label", sorted(measure.RECIPE_BATCH))
def test_batches_are_those_of_the_recipes(label: str) -> None:
    recipe = find_recipe(registry.load("methods", label), "base2new", "dtd")
    assert recipe.batch == measure.RECIPE_BATCH[label]
    assert measure.OTHER_BATCH.get(label) != recipe.batch


def test_bars_follow_from_the_seconds(report: dict[str, Any]) -> None:
    judged = rows.bars(report)
    plain, ours = 3 * (1 + 4 + 2 * 10 / 2), 5
    expected = [20 / 0.5, 10 / 0.5, 20 / 8, 8 * 15 / 6, 16 / 4, (20 * 20 * 4) ** (1 / 3), plain / ours, 60.0, 1.94]
    assert [row.value for row in judged] == pytest.approx(expected)
    assert [row.met for row in judged] == [True, True, True, True, False, True, False, True, True]


def test_adapters_have_bars_where_they_were_measured(report: dict[str, Any]) -> None:
    before = rows.bars(report)
    of_lora = {"plain-images-32": timed(50, 40, 60), "ours-images-32": timed(10, 5, 20)}
    of_cache = {"plain-images-256": timed(30), "ours-cached-256": timed(2)}
    groups = report["backbones"][measure.VIT_B16]["groups"]
    for method, pieces in (("clip_lora", of_lora), ("tip_adapter_f", of_cache)):
        groups.append({"method": method, "classes": 100, "pieces": pieces, "matmul": [100.0]})
    judged = {row.what: row for row in rows.bars(report)}
    lora = judged["CLIP-LoRA step, batch 32"]
    assert (lora.value, lora.bar, lora.met) == (5, 5, True)
    cache = judged["Tip-Adapter-F step, batch 256, ours cached, plain encodes"]
    assert (cache.value, cache.bar, cache.met) == (15, 20, False)
    assert [row.value for row in before if row.what in judged] == [judged[row.what].value for row in before]


def test_adapters_are_measured_as_they_train() -> None:
    asked = measure.Settings(methods=("clip_lora", "tip_adapter_f"))
    found = {(label, classes): names for label, classes, names in measure.plan(asked, small=False)}
    both = ["plain-images-32", "ours-images-32"]
    small = ["plain-images-4", "ours-images-4"]
    assert [found["clip_lora", classes] for classes in (20, 100, 1000)] == [both, both + small, ["ours-images-32"]]
    if "tip_adapter_f" in measure.RECIPE_BATCH:
        assert {"plain-images-256", "ours-cached-256"} <= set(found["tip_adapter_f", 100])
    usual = {label for label, _, _ in measure.plan(measure.Settings(), small=False)}
    assert "clip_lora" in usual and not usual & set(measure.BY_CHOICE)


def test_masks_are_drawn_on_both_sides_where_steps_are_timed(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pair, drawn = Pair("clip_lora", tiny, 3, batch=2), []
    dropout = torch.nn.functional.dropout

    def counting(x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
        drawn.append((p, training))
        return dropout(x, p, training, inplace)

    monkeypatch.setattr(torch.nn.functional, "dropout", counting)
    matrices = 3 * (tiny.text_depth + tiny.vision_depth)
    for side in ("plain", "ours"):
        pair.piece(f"{side}-images-2")()
        assert drawn == [(0.25, True)] * matrices
        drawn.clear()


def test_a_piece_that_was_not_run_is_no_figure(report: dict[str, Any]) -> None:
    lesser = copy.deepcopy(report)
    del lesser["backbones"][measure.VIT_B16]["groups"][-1]
    judged = {row.what: row for row in rows.bars(lesser)}
    assert judged["MaPLe step, batch 4"].met is None
    assert judged["geometric mean: CoOp cached, CoCoOp, MaPLe"].value is None


def test_plain_at_more_classes_lies_on_a_line_and_is_marked(report: dict[str, Any]) -> None:
    groups = report["backbones"][measure.VIT_B16]["groups"]
    (step,) = [step for step in rows.steps(groups) if step.classes == 1000]
    row = step.row(groups)
    assert row.plain == pytest.approx(10 + (10 - 2) / 80 * 900) and row.estimated
    assert "~100" in table.markdown(report)


def test_of_a_plain_step_that_was_counted_no_first_call_is_shown(report: dict[str, Any]) -> None:
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.markdown(report).splitlines()]
    counted, timed_once = ([line for line in lines if line[:1] == ["cocoop"] and line[3] == batch] for batch in "81")
    assert counted == [["cocoop", "encoded", "100", "8", "~120", "6", "20x", "-", "9", "-", "0.50"]]
    assert timed_once == [["cocoop", "encoded", "100", "1", "15", "1", "15x", "9", "9", "0.50", "0.50"]]


def test_a_full_cache_is_what_the_later_seeds_had(report: dict[str, Any]) -> None:
    (line,) = [line for line in table.markdown(report).splitlines() if line.startswith("| coop           |")]
    assert [cell.strip() for cell in line.split("|")[2:-1]] == ["~45", "5", "9x", "3", "15x"]


def test_a_machine_that_was_not_calm_is_named(report: dict[str, Any]) -> None:
    assert "do not cite" not in table.markdown(report)
    report["backbones"][measure.VIT_B16]["evaluations"][0]["matmul"] = [150.0]
    assert "-25 % from the first group to the last, more than the 20 %" in table.markdown(report)


def test_rendering_a_report_writes_its_table_and_a_picture(
    report: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "speed.json"
    path.write_text(json.dumps(report))
    monkeypatch.setattr(sys, "argv", ["speed", "--render", str(path)])
    command.main()
    assert path.with_suffix(".md").read_text() == table.markdown(report)
    assert path.with_suffix(".svg").read_text().startswith("<?xml")


@pytest.mark.slow
def test_the_command_measures_steps_alone(tiny_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "RECIPE_BATCH", {"coop": 32, "clip_lora": 32})
    flags = ["--quick", "--steps-only", "--threads", "1", "--classes", "3", "--backbone", tiny_name]
    monkeypatch.setattr(sys, "argv", ["speed", *flags, "-o", str(tmp_path / "out")])
    command.main()
    (found,) = json.loads((tmp_path / "out.json").read_text())["backbones"].values()
    assert {group["method"] for group in found["groups"]} == {"coop", "clip_lora"} and not found["evaluations"]
    assert (tmp_path / "out.svg").exists()


@pytest.mark.slow
def test_the_command_measures_and_writes(
    tiny_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--quick", "--threads", "1", "--classes", "3", "--backbone", tiny_name, "-o", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["speed", *flags])
    command.main()
    report = json.loads((tmp_path / "out.json").read_text())
    (found,) = report["backbones"].values()
    assert {group["method"] for group in found["groups"]} == {*measure.RECIPE_BATCH, "reading"}
    assert all(group["differences"]["logits"] <= 1e-4 for group in found["groups"] if "differences" in group)
    assert (tmp_path / "out.md").read_text() == table.markdown(report) and (tmp_path / "out.svg").exists()
    assert table.markdown(report) in capsys.readouterr().out
    assert not rows.bars(report)  # they are for another size
    assert str(Path(tiny_name.partition(":")[0]).parent) not in json.dumps(report["backbones"])


def test_the_committed_table_follows_from_the_committed_figures() -> None:
    if not MEASURED.exists():
        pytest.skip("no figures are committed")
    report = json.loads(MEASURED.read_text(encoding="utf-8"))
    assert table.markdown(report) == MEASURED.with_suffix(".md").read_text(encoding="utf-8")
    assert MEASURED.with_suffix(".svg").exists()
    assert report["machine"]["commit"] and not report["machine"]["commit"].endswith("-dirty")
