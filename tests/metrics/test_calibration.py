"""Calibration in bins of equal count, likelihood, Brier score and temperature, by hand and against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from sklearn.metrics import brier_score_loss, log_loss
from torch import Tensor

from promptbench.metrics.classification import (
    CALIBRATION,
    LOG_TEMPERATURE,
    ROWS,
    accuracy,
    adaptive_calibration_error,
    brier_score,
    calibration,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
)


def scored(images: int, classes: int, scale: float, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, classes, generator=generator)
    labels = torch.multinomial(logits.softmax(dim=1), 1, generator=generator).flatten()
    return logits * scale, labels


def of_two(*confidences: float) -> Tensor:
    """Logits of two classes, the first with these probabilities."""
    first = torch.tensor(confidences, dtype=torch.float64)
    return torch.stack([first, 1 - first], dim=1).log()


def test_bins_of_equal_count_by_hand() -> None:
    # Sorted 0.6 wrong, 0.7 right, 0.8 wrong | 0.9 right, 0.95 right: the first of two parts gets the image left over.
    # |1 - 2.1| / 5 + |2 - 1.85| / 5 = 0.22 + 0.03.
    logits = of_two(0.9, 0.6, 0.8, 0.7, 0.95)
    labels = torch.tensor([0, 1, 1, 0, 0])
    assert adaptive_calibration_error(logits, labels, bins=2) == pytest.approx(25.0, abs=1e-9)
    assert adaptive_calibration_error(logits, labels, bins=1) == pytest.approx(100 * abs(3 - 3.95) / 5, abs=1e-9)
    each = [0.6, 0.3, 0.8, 0.1, 0.05]
    assert adaptive_calibration_error(logits, labels) == pytest.approx(100 * sum(each) / 5, abs=1e-9)  # 15 bins


def test_equal_confidences_stay_in_order() -> None:
    # All at 0.75: the first half right, the second wrong. Any other order would be nearer to calibration.
    logits, labels = of_two(*[0.75] * 20), torch.tensor([0] * 10 + [1] * 10)
    assert adaptive_calibration_error(logits, labels, bins=2) == pytest.approx(100 * (0.25 + 0.75) / 2)
    assert adaptive_calibration_error(logits, labels, bins=1) == pytest.approx(25.0)


@pytest.mark.parametrize("images", [7, 400, 2 * ROWS + 3])
def test_bins_of_equal_count_are_those_of_array_split(images: int) -> None:
    logits, labels = scored(images, 5, 2.0, seed=images)
    probabilities = logits.double().softmax(dim=1).numpy()
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels.numpy()
    expected = 0.0
    for part in np.array_split(np.argsort(confidence, kind="stable"), 15):
        if len(part):
            expected += len(part) / images * abs(right[part].mean() - confidence[part].mean())
    assert adaptive_calibration_error(logits, labels) == pytest.approx(100 * expected, abs=1e-9)


@pytest.mark.parametrize("scale", [0.3, 1.0, 30.0])
@pytest.mark.parametrize("temperature", [0.05, 1.0, 7.0])
def test_likelihood_and_brier_score_equal_scikit_learn(scale: float, temperature: float) -> None:
    logits, labels = scored(ROWS + 5, 4, scale, seed=3)
    probabilities = (logits.double() / temperature).log_softmax(dim=1).exp().numpy()
    truth = np.eye(4)[labels.numpy()]
    likely = negative_log_likelihood(logits, labels, temperature)
    assert likely == pytest.approx(-np.mean((logits.double() / temperature).log_softmax(1).numpy()[truth == 1]))
    if scale / temperature < 10:  # log_loss cuts probabilities off at the smallest float64 beside 1
        assert likely == pytest.approx(log_loss(labels.numpy(), probabilities, labels=range(4)), rel=1e-9)
    squares = [brier_score_loss(truth[:, k], probabilities[:, k], pos_label=1) for k in range(4)]
    assert brier_score(logits, labels, temperature) == pytest.approx(sum(squares), rel=1e-9)


def test_likelihood_and_brier_score_by_hand() -> None:
    logits, labels = of_two(0.8, 0.6), torch.tensor([0, 1])
    assert negative_log_likelihood(logits, labels) == pytest.approx(-(math.log(0.8) + math.log(0.4)) / 2)
    assert brier_score(logits, labels) == pytest.approx((2 * 0.04 + 2 * 0.36) / 2)
    certain = torch.tensor([[200.0, 0.0]])
    assert negative_log_likelihood(certain, torch.tensor([1])) == 200.0  # where a probability in float32 is 0
    assert brier_score(certain, torch.tensor([1])) == 2.0


def test_temperature_divides_logits_and_changes_no_accuracy() -> None:
    logits, labels = scored(500, 6, 4.0, seed=5)
    assert calibration(logits, labels) == calibration(logits, labels, temperature=1.0)
    scaled = calibration(logits, labels, temperature=4.0)
    assert scaled == {name: measure(logits.double() / 4, labels) for name, measure in CALIBRATION.items()}
    assert scaled["ece"] == pytest.approx(expected_calibration_error(logits / 4, labels), abs=1e-4)
    assert accuracy(logits, labels) == accuracy(logits / 4, labels)


@pytest.mark.parametrize("wanted", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("images", [30, 3000])
def test_the_fitted_temperature_is_the_best_of_a_grid_and_the_root_of_the_slope(wanted: float, images: int) -> None:
    logits, labels = scored(images, 5, wanted, seed=7)
    found = fit_temperature(logits, labels)
    grid = np.linspace(*LOG_TEMPERATURE, 601)
    losses = [negative_log_likelihood(logits, labels, math.exp(step)) for step in grid]
    assert negative_log_likelihood(logits, labels, found) <= min(losses) + 1e-12
    assert abs(math.log(found) - grid[int(np.argmin(losses))]) <= 0.01

    def slope(inverse: float) -> float:  # of the loss in 1 / T: mean logit less that of the truth
        mean = (logits.double() * (logits.double() * inverse).softmax(dim=1)).sum(dim=1)
        return float((mean - logits.double().gather(1, labels[:, None]).flatten()).mean())

    assert found == pytest.approx(1 / brentq(slope, math.exp(-3), math.exp(3)), rel=1e-4)
    if images > 1000:
        assert found == pytest.approx(wanted, rel=0.1)  # what the labels were drawn with


def test_a_temperature_is_within_its_bounds() -> None:
    right, wrong = of_two(0.9, 0.8), torch.tensor([1, 1])
    assert fit_temperature(right, torch.tensor([0, 0])) == math.exp(-3)  # the colder the better
    assert fit_temperature(right, wrong) == math.exp(3)


@pytest.mark.parametrize("measure", CALIBRATION.values())
def test_calibration_refuses_what_has_none(measure: object) -> None:
    assert callable(measure)
    with pytest.raises(ValueError, match="at least one image"):
        measure(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    with pytest.raises(ValueError, match="NaN"):
        measure(torch.tensor([[float("nan"), 1.0]]), torch.tensor([1]))
    for temperature in (0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match="temperature is more than 0 and finite"):
            measure(torch.zeros(1, 2), torch.tensor([0]), temperature=temperature)
    with pytest.raises((ValueError, RuntimeError, IndexError)):
        measure(torch.zeros(1, 2), torch.zeros(2, dtype=torch.long))
