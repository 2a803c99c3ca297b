"""A method that chooses by validation images: which it sees, and what a result says of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import make_fake
import pytest

from promptbench.cli.main import main
from promptbench.data.dataset import open_dataset
from promptbench.results.knowledge import selection_of
from promptbench.results.result import read_result


def records(output: Path) -> dict[str, tuple[Path, Any]]:
    found = [(path, json.loads(path.read_text())) for path in output.glob("results/**/*.json")]
    return {f"{record['spec']['method']}@{record['spec']['preset']}": (path, record) for path, record in found}


@pytest.mark.slow
def test_a_result_says_by_which_images_its_settings_were_chosen(tmp_path: Path, tiny_name: str) -> None:
    make_fake.make("dtd", tmp_path)
    labels = ("zeroshot@ensemble", "zeroshot@generic", "tip_adapter", "tip_adapter@searched", "tip_adapter_f@authors")
    call = ["run", "--method", *labels, "--dataset", "dtd", "--backbone", tiny_name, "--shots", "1", "--seeds", "1"]
    call += ["--suite", "clip11", "--data-root", str(tmp_path), "--output", str(tmp_path / "out"), "--device", "cpu"]
    call += ["--threads", "1", "--set", "tip_adapter_f.epochs=2"]
    assert main(call) == 0
    dataset = open_dataset("dtd", roots=[tmp_path])
    base = (len(dataset.class_names) + 1) // 2
    validation = [item for item in dataset.items("val") if item.label < base]
    few = base  # one of each class
    found = records(tmp_path / "out")
    said = {}
    for label, (_, record) in found.items():
        conditions = record["conditions"]
        said[label] = [conditions.get(f"chosen_{what}") for what in ("on", "on_images", "among")]
    assert said["tip_adapter@"] == [None, None, None]
    assert said["tip_adapter@searched"] == ["few", few, 4000]
    assert said["tip_adapter_f@authors"] == ["all", len(validation), 4000]
    chosen = {label: str(selection_of(read_result(path))) for label, (path, _) in found.items()}
    assert chosen["tip_adapter@"] == "unknown" and chosen["zeroshot@ensemble"] == "none"
    assert chosen["tip_adapter@searched"] == "few-shot validation (4000 each)"
    assert chosen["tip_adapter_f@authors"] == "full validation (4000 each)"
    told = {label: record["conditions"]["texts_told"] for label, (_, record) in found.items()}
    assert (told.pop("zeroshot@ensemble"), told.pop("zeroshot@generic")) == ("ensemble", "generic")
    assert set(told.values()) == {"dataset"}
    for _, record in found.values():
        images = sum(n for name, n in record["conditions"]["images"].items() if f"{name}/" not in record["notes"])
        seconds = record["cost"]["eval_seconds"]
        assert record["cost"]["eval_ms_per_image"] == pytest.approx(1000 * seconds / images, abs=1.0 / images)
    assert few < len(validation)
    path, trained = found["tip_adapter_f@authors"]
    assert set(trained["diagnostics"]) == {"base/alpha", "base/beta"}
    path.unlink()
    assert main(call) == 0  # from the stored training, which holds what was chosen
    again = records(tmp_path / "out")["tip_adapter_f@authors"][1]
    for name in ("metrics", "diagnostics", "conditions", "losses"):
        assert again[name] == trained[name], name
