"""The speed benchmark: both paths say the same, its table follows from its report, its bars from the figures."""

from __future__ import annotations

import copy
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from promptbench.benchmarks.speed import __main__ as command
from promptbench.benchmarks.speed import measure, rows, table
from promptbench.benchmarks.speed.evaluations import METHODS, plain_seconds, time_evaluations
from promptbench.benchmarks.speed.limit import CACHED, ENCODED, KNOWN, gflop
from promptbench.benchmarks.speed.operations import kind_of, shares
from promptbench.benchmarks.speed.plain import PLAIN
from promptbench.benchmarks.speed.steps import Pair, check_equal, time_group
from promptbench.benchmarks.speed.timing import Matmul, Turns
from shared_paths import REPOSITORY
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from promptbench import registry
from promptbench.clip.load import load_backbone
from promptbench.data.class_names import ClassNames
from promptbench.method import create_method
from promptbench.recipe import Recipe, find_recipe
from promptbench.training.fit import fit, loss_of

MEASURED = REPOSITORY / "results" / "measured" / "speed.json"
TRAINED = tuple(measure.RECIPE_BATCH)


def timed(*seconds: float, first: float = 9.0, peak: float = 0.5, gflop: float = 60.0) -> dict[str, Any]:
    return {"seconds": list(seconds), "first": first, "peak_gib": peak, "gflop": gflop}


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
    cocoop = group(
        "cocoop",
        100,
        plain_images_1=timed(15),
        ours_images_1=timed(1, gflop=180.0),
        ours_cached_1=timed(0.5),
        ours_images_8=timed(6),
    )
    maple = group("maple", 100, plain_images_4=timed(16), ours_images_4=timed(4, gflop=640.0))
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
        "schema": 2,
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


def test_the_limit_of_coop_is_counted_by_hand(tiny: Any) -> None:
    method = create_method("coop", tiny, ClassNames(["tench", "goldfish"]))
    d, D, K, B, blocks = tiny.text_width, tiny.embed_dim, 2, 3, tiny.text_depth
    # "a photo of a tench.", "... goldfish.": four learned tokens once, then the name, the full stop and [EOT].
    own = sum(len(tiny.tokenizer.encode(name)) + 2 for name in ("tench", "goldfish"))
    first = 24 * d * d * 4 + 18 * d * d * own  # what is tokenised has the same queries, keys and values in every step
    between = (blocks - 2) * 24 * d * d * (4 + own)
    last = 4 * d * d * (4 + own) + 20 * d * d * K
    once = first + between + last + 2 * d * D * K
    assert gflop("coop", method, B, CACHED) == pytest.approx((2 * once + 4 * B * K * D) / 1e9)


@pytest.mark.parametrize("label", TRAINED)
def test_no_step_computes_less_than_its_limit_says_nor_much_more(label: str, tiny: Any) -> None:
    pair = Pair(label, tiny, 12, batch=4)
    source = CACHED if label in measure.CACHED else ENCODED
    step = pair.our_piece(4, cached=source == CACHED)
    step()  # what is computed once, is
    with FlopCounterMode(display=False) as counter:
        step()
    limit = gflop(label, pair.method, 4, source)
    assert 0.7 * counter.get_total_flops() / 1e9 < limit <= counter.get_total_flops() / 1e9


@pytest.mark.parametrize(("label", "passes"), [("cocoop", (1, 0)), ("mutual", (2, 1)), ("promptsrc", (2, 1))])
def test_known_features_spare_the_frozen_pass_and_change_no_gradient(
    label: str, passes: tuple[int, int], tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, source = Pair(label, tiny, 3, batch=2), measure.ALSO_KNOWN[label]
    pair.features = tiny.encode_image(pair.pixels).cls
    visual, entered = tiny.clip.visual, []
    embeds = visual._embeds
    monkeypatch.setattr(visual, "_embeds", lambda pixels: entered.append(len(pixels)) or embeds(pixels))
    batches, gradients = (pair.images(2, False), pair.images(2, source == CACHED, source == KNOWN)), []
    for images, runs in zip(batches, passes, strict=True):
        entered.clear()
        _, loss = loss_of(pair.method, images, pair.labels)
        gradients.append(torch.autograd.grad(loss, pair.parameters))
        assert sum(entered) == 2 * runs
    for encoded, spared in zip(*gradients, strict=True):
        torch.testing.assert_close(spared, encoded, rtol=1e-4, atol=1e-6)


def test_operations_are_told_apart_by_their_names() -> None:
    names = (
        "aten::addmm",
        "aten::add_",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::cat",
        "aten::view",
    )
    assert [kind_of(name) for name in names] == ["products", "pointwise", "attention", "copies", "other"]
    a = torch.randn(400, 400)
    found = shares(lambda: a @ a)
    assert found["products"] > 50 and sum(found.values()) == pytest.approx(100, abs=0.5)


@pytest.mark.parametrize("label", sorted(measure.RECIPE_BATCH))
def test_batches_are_those_of_the_recipes(label: str) -> None:
    recipe = find_recipe(registry.load("methods", label), "base2new", "dtd")
    assert recipe.batch == measure.RECIPE_BATCH[label]
    assert measure.OTHER_BATCH.get(label) != recipe.batch


def test_bars_follow_from_the_seconds(report: dict[str, Any]) -> None:
    judged = {row.what: (row.value, row.met) for row in rows.bars(report)}
    plain, ours = 3 * (1 + 4 + 2 * 10 / 2), 5
    assert judged == {
        "CoOp step, batch 32, ours cached, plain encodes": (20 / 0.5, True),
        "CoOp step, batch 32, cached on both sides": (10 / 0.5, True),
        "CoOp step, batch 32, encoded on both sides": (20 / 8, True),
        "CoCoOp step, batch 1, encoded on both sides": (15, True),
        "CoCoOp step, batch 1, ours cached, plain encodes": (30, True),
        "CoCoOp step, batch 8": (8 * 15 / 6, True),
        "MaPLe step, batch 4": (4, False),
        "PromptSRC step, batch 4, frozen features known to ours": (None, None),
        "CLIP-LoRA step, batch 32": (None, None),
        "CLIP-LoRA step, batch 4": (None, None),
        "Tip-Adapter-F step, batch 256, ours cached, plain encodes": (None, None),
        "evaluation, 1 methods x 3 seeds": (plain / ours, False),
        "share of the limit, CoOp cached": (100 * 60 / 200 / 0.5, False),
        "share of the limit, the least of 3 methods (coop)": (100 * 60 / 200 / 0.5, False),
        "CoCoOp, 1000 classes, batch 8, over the weights": (1.94, True),
    }


def test_the_limit_is_the_least_work_at_the_rate_of_the_matrix_product(report: dict[str, Any]) -> None:
    groups = report["backbones"][measure.VIT_B16]["groups"]
    (step,) = [step for step in rows.steps(groups) if step.method == "maple"]
    assert (step.limit, step.share) == (640 / 200, 80)  # GFLOP over the median GFLOP/s, and percent of 4 seconds
    (line,) = [line for line in table.markdown(report).splitlines() if line.startswith("| maple ")]
    assert [cell.strip() for cell in line.split("|")][8:10] == ["3.2", "80%"]


def test_a_plain_step_that_encodes_is_counted_with_the_image_tower_of_coop(report: dict[str, Any]) -> None:
    groups = report["backbones"][measure.VIT_B16]["groups"]
    pieces = {"plain-cached-256": timed(0.25), "ours-cached-256": timed(0.5)}
    groups.append({"method": "tip_adapter_f", "classes": 100, "pieces": pieces, "matmul": [100.0]})
    found = {step.plain_images: step for step in rows.steps(groups) if step.method == "tip_adapter_f"}
    tower = (20 - 10) / 32  # of one image
    assert (found[CACHED].plain, found[CACHED].estimated) == (0.25, False)
    assert (found[ENCODED].plain, found[ENCODED].estimated) == (0.25 + 256 * tower, True)
    judged = {row.what: row for row in rows.bars(report)}
    row = judged["Tip-Adapter-F step, batch 256, ours cached, plain encodes"]
    assert (row.value, row.met, row.estimated) == (160.5, True, True)


def test_every_method_that_takes_steps_is_measured_at_every_number_of_classes() -> None:
    plan = {(label, classes): names for label, classes, names in measure.plan(measure.Settings(), small=False)}
    stepping = {name for name in registry.names("methods") if registry.load("methods", name).trains}
    assert {label for label, _ in plan} == stepping == set(PLAIN) - {"zeroshot", "linear_probe"}
    for label in stepping:
        few, many, most = ({name.split("-")[0] for name in plan[label, classes]} for classes in (20, 100, 1000))
        whole = {"plain", "ours"}
        at_most = {"ours"} if PLAIN[label].prompts_per_class else whole
        assert (few, many, most) == (whole, {"ours"} if label == "gallop" else whole, at_most), label
    assert "plain-images-32" in plan["gallop", 10]  # the other point of its line
    both = ["plain-images-32", "ours-images-32"]
    assert plan["clip_lora", 20] == both
    assert plan["clip_lora", 100] == [*both, "plain-images-4", "ours-images-4"]
    assert plan["kgcoop", 100] == ["plain-cached-128", "ours-cached-128"]
    assert plan["mutual", 100] == ["plain-images-1", "ours-images-1", "ours-known-1", "ours-images-8"]


def test_a_slow_piece_takes_one_turn_and_the_others_all() -> None:
    calls: list[str] = []

    def slow() -> None:
        calls.append("slow")
        time.sleep(0.02)

    turns = Turns(Matmul(16), rounds=3, turn=0, slow=0.01)
    found = turns.take({"slow": slow, "fast": lambda: calls.append("fast")})
    assert (calls.count("slow"), calls.count("fast")) == (2, 4)  # the first calls among them
    assert len(found["pieces"]["slow"]["seconds"]) == 1


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


def test_plain_at_more_classes_lies_on_a_line_and_is_marked(report: dict[str, Any]) -> None:
    groups = report["backbones"][measure.VIT_B16]["groups"]
    found = {step.plain_images: step for step in rows.steps(groups) if step.classes == 1000}
    on_the_line = 10 + (10 - 2) / 80 * 900
    assert found[CACHED].plain == pytest.approx(on_the_line) and found[CACHED].estimated
    assert found[ENCODED].plain == pytest.approx(on_the_line + 20 - 10)
    assert "~100" in table.markdown(report)


def test_seconds_that_hardly_rise_with_the_classes_say_nothing_of_more_classes(report: dict[str, Any]) -> None:
    groups = report["backbones"][measure.VIT_B16]["groups"]
    (fewer,) = (group for group in groups if (group["method"], group["classes"]) == ("coop", 20))
    fewer["pieces"]["plain-cached-32"]["seconds"] = [10 / 1.2]
    (found,) = (step for step in rows.steps(groups) if step.classes == 1000)
    assert found.plain is None and found.ratio is None


def test_texts_that_are_known_before_the_first_step_are_no_reason_to_count_it() -> None:
    settings = measure.Settings()
    whole = [label for label in measure.RECIPE_BATCH if measure.runs_whole(label, 1000, settings, small=False)]
    assert whole == ["vpt", "tip_adapter_f", "clip_adapter", "taskres", "clap"]


def test_of_a_plain_step_that_was_counted_no_memory_is_shown(report: dict[str, Any]) -> None:
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.markdown(report).splitlines()]
    found = [line for line in lines if line[:2] == ["cocoop", "encoded"]]
    assert found == [
        ["cocoop", "encoded", "100", "1", "15", "1", "15x", "0.9", "90%", "0.50", "0.50"],
        ["cocoop", "encoded", "100", "8", "~120", "6", "20x", "0.3", "5%", "-", "0.50"],
    ]


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


def test_a_call_that_was_ended_goes_on_where_it_was(
    tiny_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--quick", "--steps-only", "--threads", "1", "--classes", "2", "3", "--backbone", tiny_name]
    monkeypatch.setattr(sys, "argv", ["speed", *flags, "--method", "taskres", "clap", "-o", str(tmp_path / "out")])
    of_group, begun = measure.time_group, []

    def group_of(label: str, backbone: Any, classes: int, *others: Any) -> dict[str, Any]:
        begun.append((label, classes))
        if len(begun) == 2:
            raise KeyboardInterrupt
        return of_group(label, backbone, classes, *others)

    monkeypatch.setattr(measure, "time_group", group_of)
    with pytest.raises(KeyboardInterrupt):
        command.main()
    part = json.loads((tmp_path / "out.part.json").read_text())
    assert not (tmp_path / "out.json").exists()
    command.main()
    report = json.loads((tmp_path / "out.json").read_text())
    assert begun == [("taskres", 3), ("clap", 3), ("clap", 3), ("taskres", 2), ("clap", 2)]
    (found,), (before,) = report["backbones"].values(), part["backbones"].values()
    assert found["groups"][0] == before["groups"][0] and len(found["groups"]) == 4
    assert not (tmp_path / "out.part.json").exists() and "is continued" in capsys.readouterr().out


def test_what_was_measured_otherwise_is_not_continued(
    report: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = copy.deepcopy(report)
    other["machine"]["commit"] = "def"
    assert command.continued(other, report, tmp_path / "out.part.json") is report
    assert "not continued: another commit" in capsys.readouterr().out
    other["machine"] = {**report["machine"], "created": "later"}
    assert command.continued(other, report, tmp_path / "out.part.json") is other


def test_a_method_without_steps_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["speed", "--quick", "--method", "coop", "zeroshot"])
    with pytest.raises(SystemExit, match="'zeroshot' takes no gradient steps: name some of coop, "):
        command.main()


@pytest.mark.slow
def test_the_command_measures_steps_alone(tiny_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--quick", "--steps-only", "--threads", "1", "--classes", "3", "--backbone", tiny_name]
    monkeypatch.setattr(sys, "argv", ["speed", *flags, "--method", "coop", "clip_lora", "-o", str(tmp_path / "out")])
    command.main()
    (found,) = json.loads((tmp_path / "out.json").read_text())["backbones"].values()
    assert {group["method"] for group in found["groups"]} == {"coop", "clip_lora"} and not found["evaluations"]
    assert (tmp_path / "out.svg").exists()


@pytest.mark.slow
def test_the_command_measures_and_writes(
    tiny_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--quick", "--threads", "1", "--classes", "3", "--backbone", tiny_name, "-o", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["speed", "--method", "coop", "promptsrc", *flags])
    command.main()
    report = json.loads((tmp_path / "out.json").read_text())
    assert not (tmp_path / "out.part.json").exists()
    (found,) = report["backbones"].values()
    assert {group["method"] for group in found["groups"]} == {"coop", "promptsrc", "reading"}
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
