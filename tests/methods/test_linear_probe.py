"""The linear probe is scikit-learn's logistic regression on the frozen features, and says that it cannot transfer."""

from __future__ import annotations

from pathlib import Path

import make_fake
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

import promptbench as pb
from promptbench.cli import main
from promptbench.clip.image_tower import Images
from promptbench.config import UsageError


def images_of(classes: int, tiny: pb.Backbone) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(6 * classes) % classes
    pixels = torch.randn(len(labels), 3, tiny.resolution, tiny.resolution, generator=generator)
    return pixels + labels.view(-1, 1, 1, 1), labels


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_probabilities_equal_scikit_learns(classes: int, tiny: pb.Backbone) -> None:
    pixels, labels = images_of(classes, tiny)
    method = pb.create_method("linear_probe", tiny, [f"thing {k}" for k in range(classes)], C=0.5)
    method.prepare((Images(p), y) for p, y in zip(pixels.split(4), labels.split(4), strict=True))
    features = torch.cat([tiny.encode_image(p).cls for p in pixels.split(4)]).numpy()  # the solver enlarges last bits
    expected = LogisticRegression(C=0.5, max_iter=1000).fit(features, labels.numpy()).predict_proba(features)
    np.testing.assert_allclose(method(pixels).logits.softmax(dim=1).numpy(), expected, atol=1e-5)


def test_nothing_is_scored_before_training_images_were_seen(tiny: pb.Backbone) -> None:
    method = pb.create_method("linear_probe", tiny, ["cat", "dog"])
    with pytest.raises(UsageError, match="before `prepare`"):
        method(images_of(2, tiny)[0])


def test_the_table_has_a_dash_and_the_reason_for_new_classes(
    tmp_path: Path, tiny_name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make_fake.make_split_folders(tmp_path / "birds", ("crow", "eagle", "finch", "gull"))
    words = ["run", "--method", "linear_probe", "--dataset", f"folder:{tmp_path / 'birds'}", "--shots", "2"]
    words += ["--protocol", "base2new"]
    assert main.main([*words, "--backbone", tiny_name, "--output", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if "| Linear probe" in line)
    assert row.split("|")[6].strip().startswith("–")
    assert "weights for the classes it was fitted on only" in out
