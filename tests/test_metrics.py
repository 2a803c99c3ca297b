"""Accuracy and harmonic mean against hand calculations and published averages."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from promptbench.metrics import accuracy, harmonic_mean


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
def test_accuracy_refuses_what_has_no_accuracy(logits: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        accuracy(logits, labels)


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
    code = "import sys; from promptbench.metrics import harmonic_mean; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
