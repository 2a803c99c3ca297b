"""Controls through the command: what is trained, what is shared, what is stored, and what is loaded again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import make_fake
import pytest
import torch

from promptbench.checkpoints.load import load
from promptbench.cli.main import main
from promptbench.results.predictions import load_predictions
from promptbench.results.result import predictions_path, read_results
from promptbench.training.files import read_training


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory, tiny_name: str) -> Path:
    """CoCoOp and its two controls, trained for two epochs."""
    folder = tmp_path_factory.mktemp("controls")
    make_fake.make("dtd", folder)
    call = ["run", "--method", "cocoop@random", "cocoop", "cocoop@noise", "--dataset", "dtd", "--suite", "clip11"]
    call += ["--backbone", tiny_name, "--shots", "1", "--seeds", "1", "--threads", "1", "--device", "cpu"]
    call += ["--set", "cocoop.epochs=2", "cocoop.lr=0.5", "cocoop.batch=4", "--save-predictions"]
    assert main([*call, "--data-root", str(folder), "--output", str(folder / "out")]) == 0
    return folder / "out"


def by_preset(output: Path) -> dict[str, Any]:
    return {result.spec.preset: result for result in read_results(output) if result.spec.method == "cocoop"}


@pytest.mark.slow
def test_random_prompts_share_the_training_and_noise_has_its_own(output: Path) -> None:
    found = by_preset(output)
    keys = {preset: result.conditions["training_key"] for preset, result in found.items()}
    assert keys["random"] == keys[""] != keys["noise"]
    assert len(list((output / "trainings").glob("*.safetensors"))) == 2
    assert found["random"].losses == found[""].losses != found["noise"].losses
    said = {preset: (result.spec.condition, result.spec.prompts) for preset, result in found.items()}
    assert said == {"": ("", ""), "noise": ("noise", ""), "random": ("", "random")}
    logits = {}
    for preset, result in found.items():
        logits[preset] = load_predictions(predictions_path(output, result.spec))["new"].logits
    assert not torch.allclose(logits[""], logits["random"]) and not torch.allclose(logits[""], logits["noise"])


@pytest.mark.slow
def test_a_stored_control_is_loaded_as_it_was_evaluated(output: Path, tiny_name: str) -> None:
    plain, random, noise = (load(by_preset(output)[name].path).method for name in ("", "random", "noise"))
    assert (plain.told, random.told, noise.told) == ("", "", "noise")
    one, other = plain.state_dict(), random.state_dict()
    assert [name for name in one if not torch.equal(one[name], other[name])] == ["ctx"]
    assert torch.allclose(one["ctx"].norm(dim=-1), other["ctx"].norm(dim=-1), rtol=1e-5)
    (shared,) = {
        output / "trainings" / f"{by_preset(output)[name].conditions['training_key'][:32]}.safetensors"
        for name in ("", "random")
    }
    assert torch.equal(
        read_training(shared)[0]["ctx"], one["ctx"]
    )  # random was first, and the file holds what is learned
    assert torch.equal(load(shared).method.state_dict()["ctx"], one["ctx"])


@pytest.mark.slow
def test_the_table_of_controls_is_about_them(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["evidence", "controls", "--results", str(output)]) == 0
    text = capsys.readouterr().out
    assert "What the image says adds" in text and "| CoCoOp " in text
    lines = []
    for line in text.splitlines():
        if line.startswith("| CoCoOp "):
            lines.append([cell.strip() for cell in line.split("|")[1:5]])
    assert lines == [
        ["CoCoOp", "CoCoOp (noise)", "what the image says", "alike"],
        ["CoCoOp", "CoCoOp (random)", "the direction of what is learned", "same"],
    ]


def test_presets_of_controls_are_where_they_mean_something(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "cocoop@noise"]) == 0
    said = capsys.readouterr().out
    assert "cocoop@noise" in said and "cocoop@random" in said
    assert main(["describe", "coop@noise"]) == 2
    assert main(["describe", "linear_probe@random"]) == 2
    assert "coop" in capsys.readouterr().err
