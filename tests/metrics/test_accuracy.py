"""Accuracy, calibration and harmonic mean against hand calculations, torchmetrics and published averages."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_confusion_matrix

from promptbench.metrics.classification import (
    accuracy,
    confusion,
    expected_calibration_error,
    harmonic_mean,
    per_class_accuracy,
)


def test_accuracy_counts_correct_images() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [0.0, 3.0, 2.0]])
    assert accuracy(logits, torch.tensor([0, 2, 2])) == 100 * 2 / 3


def test_accuracy_is_micro_not_macro() -> None:
    # Hand calculation: class 0 has 3 of 3, class 1 has 0 of 1; micro 75, macro 50.
    logits = torch.tensor([[1.0, 0.0]] * 4)
    assert accuracy(logits, torch.tensor([0, 0, 0, 1])) == 75.0


def test_accuracy_is_exact_where_float32_is_not() -> None:
    n = 3 * 7 * 11
    labels = torch.zeros(n, dtype=torch.long)
    labels[:1] = 1
    assert accuracy(torch.tensor([[1.0, 0.0]]).expand(n, 2), labels) == 100.0 * (n - 1) / n


def test_accuracy_gives_ties_to_the_lower_class() -> None:
    assert accuracy(torch.zeros(2, 3), torch.tensor([0, 1])) == 50.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_accuracy_takes_any_float_and_extreme_scores(dtype: torch.dtype) -> None:
    logits = torch.tensor([[float("-inf"), 0.0], [float("inf"), 0.0]], dtype=dtype)
    assert accuracy(logits, torch.tensor([1, 0])) == 100.0


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.long), r"not \(2, 3\) and \(3,\)"),
        (torch.zeros(3), torch.zeros(3, dtype=torch.long), "takes logits"),
        (torch.zeros(2, 3), torch.zeros(2, 1, dtype=torch.long), "takes logits"),
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), "at least one image"),
        (torch.tensor([[float("nan"), 1.0]]), torch.tensor([1]), "NaN"),
    ],
)
def test_accuracy_refuses_what_has_no_accuracy(logits: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        accuracy(logits, labels)


def scored(images: int, classes: int, scale: float, seed: int) -> tuple[Tensor, Tensor]:
    """Random logits, and labels that the largest logit names about half of the time."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(images, classes, generator=generator)
    others = torch.randint(classes, (images,), generator=generator)
    return logits, torch.where(torch.rand(images, generator=generator) < 0.5, logits.argmax(dim=1), others)


def test_confusion_has_labels_in_rows_and_predictions_in_columns() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [0.0, 3.0, 2.0], [1.0, 1.0, 0.0]])
    table = confusion(logits, torch.tensor([0, 0, 2, 2]), 3)
    assert table.dtype == torch.int64
    assert table.tolist() == [[1, 0, 1], [0, 0, 0], [1, 1, 0]]


def test_confusion_equals_torchmetrics() -> None:
    logits, labels = scored(500, 7, 1.0, seed=0)
    assert confusion(logits, labels.int(), 7).equal(multiclass_confusion_matrix(logits, labels, num_classes=7))


def test_per_class_accuracy_by_hand() -> None:
    # Class 0 has 1 of 2, class 1 no image, class 2 none of 1, class 3 has 2 of 3.
    predicted, labels = torch.tensor([0, 3, 1, 3, 3, 0]), torch.tensor([0, 0, 2, 3, 3, 3])
    logits = torch.nn.functional.one_hot(predicted, 4).float()
    assert per_class_accuracy(logits, labels, 4) == [50.0, None, 0.0, 100 * 2 / 3]


@pytest.mark.parametrize(
    ("classes", "label", "message"),
    [(3, 3, "labels from 0 to 3"), (3, -1, "labels from -1 to 0"), (4, 0, "of 4 classes takes .* not 3 logits")],
)
def test_confusion_refuses_other_classes(classes: int, label: int, message: str) -> None:
    for metric in (confusion, per_class_accuracy):
        with pytest.raises(ValueError, match=message):
            metric(torch.zeros(2, 3), torch.tensor([0, label]), classes)


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("bins", [5, 15])
def test_calibration_error_equals_torchmetrics(scale: float, classes: int, bins: int) -> None:
    # Few images: torchmetrics adds in float32, which costs it 1e-6 at thousands.
    logits, labels = scored(400, classes, scale, seed=classes)
    expected = multiclass_calibration_error(logits, labels, num_classes=classes, n_bins=bins, norm="l1").item()
    assert expected > 0.01
    assert expected_calibration_error(logits, labels, bins) / 100 == pytest.approx(expected, abs=1e-6)


def test_calibration_error_of_many_images_is_added_in_float64() -> None:
    logits, labels = scored(50_000, 3, 1.0, seed=1)
    confidence, predicted = (column.numpy() for column in logits.softmax(dim=1).max(dim=1))
    correct, total = predicted == labels.numpy(), 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        total += abs(math.fsum(correct[inside]) - math.fsum(confidence[inside].tolist()))
    assert expected_calibration_error(logits, labels) == pytest.approx(100 * total / 50_000, abs=1e-5)


def test_errors_in_one_direction_are_added_in_float64() -> None:
    # All images are called class 0 with the same confidence, and are class 1: in float32 the sum stops growing evenly.
    logits, labels = torch.tensor([[2.0, 0.0]]).expand(300_000, 2), torch.ones(300_000, dtype=torch.long)
    expected = 100 / (1 + math.exp(-2))
    assert expected_calibration_error(logits, labels) == pytest.approx(expected, rel=1e-7)


def test_calibration_error_by_hand() -> None:
    # Confidences 0.6 (right, wrong) and 0.9 (right): (|1 - 1.2| + |1 - 0.9|) / 3 with ten bins, |2 - 2.1| / 3 with one.
    logits = torch.tensor([[0.6, 0.4], [0.6, 0.4], [0.1, 0.9]], dtype=torch.float64).log()
    labels = torch.tensor([0, 1, 1])
    assert expected_calibration_error(logits, labels, bins=10) == pytest.approx(10.0, abs=1e-5)
    assert expected_calibration_error(logits, labels, bins=1) == pytest.approx(10 / 3, abs=1e-5)


def test_a_confidence_at_an_edge_belongs_to_the_bin_below() -> None:
    # Confidences 0.5 (right) and 0.6 (wrong), apart: (0.5 + 0.6) / 2. Confidences 0.6 (right) and 1 (wrong), together:
    # |1 - 1.6| / 2; torchmetrics would give (0.4 + 1) / 2.
    two = torch.tensor([[0.0, 0.0], [0.6, 0.4]]).log().nan_to_num(neginf=0.0)
    assert expected_calibration_error(two, torch.tensor([0, 1]), bins=2) == pytest.approx(55.0, abs=1e-4)
    sure = torch.tensor([[0.6, 0.4], [1.0, 0.0]]).log()
    assert expected_calibration_error(sure, torch.tensor([0, 1]), bins=2) == pytest.approx(30.0, abs=1e-4)


@pytest.mark.parametrize(
    ("logits", "bins", "message"),
    [
        (torch.zeros(2, 3), 15, "Calibration error takes logits"),
        (torch.tensor([[float("nan"), 1.0]]), 15, "no calibration error to report"),
        (torch.tensor([[float("inf"), 1.0]]), 15, "infinite"),
        (torch.zeros(1, 3), 0, "at least 1 bin, not 0"),
    ],
)
def test_calibration_error_refuses_what_has_none(logits: Tensor, bins: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expected_calibration_error(logits, torch.tensor([0]), bins)


@pytest.mark.parametrize(
    ("base", "new", "expected"),
    [(82.28, 75.14, 78.55), (80.47, 71.69, 75.83), (69.34, 74.22, 71.70), (82.69, 63.22, 71.66)],
)
def test_harmonic_mean_equals_the_published_averages(base: float, new: float, expected: float) -> None:
    # MaPLe's README (CLIP, CoOp, CoCoOp, MaPLe over eleven datasets): H of the average base and the average new.
    assert harmonic_mean(base, new) == pytest.approx(expected, abs=0.005)


def test_harmonic_mean_by_hand() -> None:
    assert harmonic_mean(60.0, 30.0) == 40.0
    assert harmonic_mean(50.0, 50.0) == 50.0


@pytest.mark.parametrize(("base", "new"), [(0.0, 0.0), (80.0, 0.0), (0.0, 80.0)])
def test_harmonic_mean_with_a_zero_is_zero(base: float, new: float) -> None:
    assert harmonic_mean(base, new) == 0.0


@pytest.mark.parametrize(("base", "new"), [(-1.0, 50.0), (50.0, float("nan"))])
def test_harmonic_mean_refuses_what_is_no_accuracy(base: float, new: float) -> None:
    with pytest.raises(ValueError, match="at least 0"):
        harmonic_mean(base, new)


def test_harmonic_mean_needs_no_torch() -> None:
    code = "import sys; from promptbench.metrics.classification import harmonic_mean; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
