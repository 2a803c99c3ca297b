"""Stored predictions: what a damaged file says, one of another run, and one of an earlier version."""

from __future__ import annotations

import json
import lzma
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from shared_paths import TINY

from promptbench.cli.main import main
from promptbench.config import UsageError
from promptbench.results.predictions import load_predictions


@pytest.fixture(scope="module")
def output(birds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs with their predictions."""
    folder = tmp_path_factory.mktemp("runs")
    what = ["--backbone", TINY, "--dataset", f"folder:{birds}", "--shots", "1", "2", "--threads", "1", "--seeds", "1"]
    call = ["run", "--method", "zeroshot", "--protocol", "few_shot", *what, "--save-predictions"]
    assert main([*call, "--output", str(folder)]) == 0
    return folder


def stored(output: Path) -> list[Path]:
    return sorted((output / "predictions").rglob("*.safetensors"))


def said(output: Path, path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What `inspect` says of a run whose predictions it refuses."""
    capsys.readouterr()
    name = path.relative_to(output / "predictions").with_suffix(".json")
    assert main(["inspect", "--run", str(output / "results" / name)]) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1 and text.startswith(
        f"promptbench: error: {path} holds no predictions of this run, or is"
    )
    return text


def test_a_file_is_one_of_safetensors(output: Path) -> None:
    path = stored(output)[0]
    kept = load_predictions(path)
    held = load_file(path)
    (name,) = kept
    assert torch.equal(held[f"{name}/labels"].long(), kept[name].labels) and "sha256" in held


@pytest.mark.parametrize("place", ["name of the seal", "metadata", "logits", "labels", "seal", "end"])
def test_a_damaged_file_is_one_sentence(
    place: str, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(output, tmp_path / "runs")
    path = stored(tmp_path / "runs")[0]
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    head = json.loads(data[8:start])
    if place == "end":
        del data[-1:]
    else:
        tensors = {
            name.rpartition("/")[2]: start + fact["data_offsets"][0]
            for name, fact in head.items()
            if "data_offsets" in fact
        }
        at = {"name of the seal": data.index(b"sha256") + 3, "metadata": data.index(b"class_names") + 16, "seal": -1}
        data[at.get(place) or tensors[place]] ^= 1
    path.write_bytes(data)
    assert "; remove it and run again with --save-predictions." in said(tmp_path / "runs", path, capsys)


def test_a_file_of_another_run_is_noticed(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(output, tmp_path / "runs")
    one, other = stored(tmp_path / "runs")
    shutil.copy(one, other)
    name = one.relative_to(tmp_path / "runs" / "predictions").with_suffix("").as_posix()
    assert f"(they are of the run {name})" in said(tmp_path / "runs", other, capsys)
    shutil.copy(one, tmp_path / "elsewhere.safetensors")  # whose place says nothing
    assert load_predictions(tmp_path / "elsewhere.safetensors").keys() == load_predictions(one).keys()


def test_logits_are_kept_to_the_last_bit(output: Path, tmp_path: Path) -> None:
    """Also in a file that was compressed by xz; accuracy and calibration then follow exactly."""
    path = stored(output)[0]
    (name,) = kept = load_predictions(path)
    assert kept[name].logits.dtype == torch.float32 and kept[name].exact
    packed = tmp_path / "predictions" / path.relative_to(output / "predictions").with_suffix(".safetensors.xz")
    packed.parent.mkdir(parents=True)
    packed.write_bytes(lzma.compress(path.read_bytes()))
    assert torch.equal(load_predictions(packed)[name].logits, kept[name].logits)
    packed.write_bytes(packed.read_bytes()[:-40])
    with pytest.raises(UsageError, match="or is damaged"):
        load_predictions(packed)


def test_logits_of_an_earlier_version_are_rounded(output: Path, tmp_path: Path) -> None:
    """They lie below their row's largest in half precision, which is exact for the largest."""
    path = stored(output)[0]
    (name,) = kept = load_predictions(path)
    tensors = load_file(path)
    logits = tensors.pop(f"{name}/logits")
    largest = logits.amax(dim=1)
    del tensors["sha256"]
    half = {f"{name}/largest": largest, f"{name}/below": (logits - largest[:, None]).half()}
    with safe_open(path, framework="pt") as file:
        save_file({**tensors, **half}, tmp_path / "old.safetensors", metadata=file.metadata())
    old = load_predictions(tmp_path / "old.safetensors")[name]
    assert not old.exact and torch.equal(old.logits.argmax(dim=1), kept[name].logits.argmax(dim=1))
    assert torch.allclose(old.logits, kept[name].logits, atol=0.01) and not torch.equal(old.logits, kept[name].logits)


def test_a_file_of_an_earlier_version_is_read(output: Path, tmp_path: Path) -> None:
    path, old = stored(output)[0], tmp_path / "predictions" / "few_shot" / "birds" / "zeroshot-0.safetensors"
    old.parent.mkdir(parents=True)
    with safe_open(path, framework="pt") as file:
        facts = {name: json.loads(text) for name, text in file.metadata().items()}
    tensors = load_file(path)
    del tensors["sha256"]
    for fact in facts.values():
        del fact["run"]
    save_file(tensors, old, metadata={name: json.dumps(fact) for name, fact in facts.items()})
    for name, kept in load_predictions(path).items():
        again = load_predictions(old)[name]
        assert torch.equal(again.logits, kept.logits) and torch.equal(again.labels, kept.labels)
        assert (again.images, again.class_names) == (kept.images, kept.class_names)
    old.write_bytes(b"")
    with pytest.raises(UsageError, match="or is damaged"):
        load_predictions(old)
