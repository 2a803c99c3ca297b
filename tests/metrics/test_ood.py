"""Detection and scores against the authors' numbers, scikit-learn and a plain re-implementation."""

from __future__ import annotations

from typing import Any

import golden_clip
import numpy as np
import pytest
import torch
from shared_paths import GOLDEN
from sklearn import metrics as sklearn
from torch import Tensor

import promptbench as pb
from promptbench import registry
from promptbench.config import UsageError
from promptbench.method import Prediction
from promptbench.metrics import ood
from promptbench.metrics.ood import detection, missing, open_scores, scores_of

ALL = open_scores(["mcm", "gl_mcm", "l_mcm", "msp", "max_logit", "energy"])


def plain(known: list[float], others: list[float]) -> dict[str, float]:
    """`detection` by counting over all pairs and thresholds, as fractions of 1."""
    thresholds = sorted(set(known + others))
    pairs = sum((k > o) + (k == o) / 2 for k in known for o in others)

    def share(scores: list[float], least: float) -> float:
        return sum(score >= least for score in scores) / len(scores)

    everyone = max(t for t in thresholds if share(known, t) == 1)
    nearest = min((t for t in thresholds if t >= everyone), key=lambda t: abs(share(known, t) - 0.95))
    flags = next(t for t in thresholds if sum(o <= t for o in others) / len(others) >= 0.95)
    average, recall = 0.0, 0.0
    for t in reversed(thresholds):
        hits = sum(k >= t for k in known)
        average += (hits / len(known) - recall) * hits / (hits + sum(o >= t for o in others))
        recall = hits / len(known)
    area, recall, precision = 0.0, 0.0, 1.0
    for t in thresholds:
        hits = sum(o <= t for o in others)
        now = hits / (hits + sum(k <= t for k in known))
        area += (hits / len(others) - recall) * (now + precision) / 2
        recall, precision = hits / len(others), now
    return {
        "auroc": pairs / len(known) / len(others),
        "fpr95": share(others, nearest),
        "aupr": average,
        "fpr95_ood": sum(k <= flags for k in known) / len(known),
        "aupr_ood": area,
    }


def percent(shares: dict[str, float]) -> Any:
    return pytest.approx({name: 100 * share for name, share in shares.items()}, abs=1e-9)


def tied(seed: int) -> tuple[Tensor, Tensor]:
    """Scores of few to many images on a coarse grid."""
    random = np.random.default_rng(seed)
    known, others = random.integers(1, 80, 2)
    grid = random.choice([2, 5, 20, 1000])
    return tuple(
        torch.from_numpy(np.round(random.normal(mean, 1, count) * grid) / grid)
        for mean, count in ((random.choice([0, 1, 3]), known), (0, others))
    )


# Detection -----------------------------------------------------------------------------------------------------------


def test_detection_equals_the_numbers_of_the_authors_code() -> None:
    stored = np.load(GOLDEN / "ood_metrics_set1.npz")
    # There larger is more out-of-distribution.
    measured = detection(torch.from_numpy(-stored["scores_in"]), torch.from_numpy(-stored["scores_out"]))
    assert measured == percent(
        {
            "auroc": stored["gallop_auroc"].item(),
            "fpr95": stored["gallop_fpr95_mcm"].item(),
            "aupr": stored["gallop_aupr_in"].item(),
            "fpr95_ood": stored["openood_fpr95"].item(),
            "aupr_ood": stored["openood_aupr_out"].item(),
        }
    )
    assert stored["openood_auroc"] == stored["gallop_auroc"]


@pytest.mark.parametrize("seed", range(60))
def test_detection_equals_counting(seed: int) -> None:
    known, others = tied(seed)
    assert detection(known, others) == percent(plain(known.tolist(), others.tolist()))


@pytest.mark.parametrize("seed", range(20))
def test_detection_equals_scikit_learn_where_it_defines_the_same(seed: int) -> None:
    known, others = tied(seed)
    is_known = np.r_[np.ones(len(known)), np.zeros(len(others))]
    scores = torch.cat([known, others]).numpy()
    precision, recall, _ = sklearn.precision_recall_curve(1 - is_known, -scores)
    lost, found, _ = sklearn.roc_curve(1 - is_known, -scores, drop_intermediate=False)
    measured = detection(known, others)
    del measured["fpr95"]
    assert measured == percent(
        {
            "auroc": sklearn.roc_auc_score(is_known, scores),
            "aupr": sklearn.average_precision_score(is_known, scores),
            "fpr95_ood": lost[np.argmax(found >= 0.95)],
            "aupr_ood": sklearn.auc(recall, precision),
        }
    )


def test_the_two_conventions_by_hand() -> None:
    # 20 ID images at 1 to 20, OOD at 0.5, 0.7 and 30. ID positive: recall 0.95 at threshold 2, above which one of three
    # OOD images lies. OOD positive: all three must be found, up to the score 30, which loses every ID image.
    measured = detection(torch.arange(1.0, 21.0), torch.tensor([0.5, 0.7, 30.0]))
    assert measured["fpr95"] == pytest.approx(100 / 3)
    assert measured["fpr95_ood"] == 100.0
    assert measured["auroc"] == pytest.approx(100 * (20 + 20 + 0) / 60)


def test_recall_is_nearest_to_95_percent_even_where_that_is_below() -> None:
    # The OOD image ties with the lowest ID image. Of 8 ID images, 7 are further from 0.95 than all; of 16, 15 nearer.
    lowest = torch.tensor([1.0])
    assert detection(torch.arange(1.0, 9.0), lowest)["fpr95"] == 100.0
    assert detection(torch.arange(1.0, 17.0), lowest)["fpr95"] == 0.0


def test_among_thresholds_of_equal_recall_the_lowest_counts() -> None:
    # 19 of 20 ID images score 2 or more, and also 1.5 or more, which accepts an OOD image too.
    known = torch.arange(1.0, 21.0)
    assert detection(known, torch.tensor([1.5, -1.0]))["fpr95"] == 50.0


def test_scores_that_say_nothing_or_everything() -> None:
    same, low, high = torch.zeros(4), torch.zeros(5), torch.ones(6)
    assert detection(same, low)["auroc"] == 50.0
    assert detection(same, low)["fpr95"] == detection(same, low)["fpr95_ood"] == 100.0
    perfect = {"auroc": 100.0, "fpr95": 0.0, "aupr": 100.0, "fpr95_ood": 0.0, "aupr_ood": 100.0}
    assert detection(high, low) == perfect
    assert detection(low, high)["auroc"] == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_detection_takes_any_float(dtype: torch.dtype) -> None:
    known, others = (scores.to(dtype) for scores in tied(3))
    assert detection(known, others) == detection(known.double(), others.double())


def test_large_scores_are_told_apart() -> None:
    # A sigmoid would make all of them 1, and the areas those of ties: 50 percent.
    measured = detection(torch.tensor([101.0, 103.0]), torch.tensor([100.0, 102.0]))
    assert measured["auroc"] == 75.0
    assert measured["aupr"] == pytest.approx(100 * (1 / 2 + 1 / 2 * 2 / 3))


def test_scores_in_float64_keep_their_digits() -> None:
    known, others = (torch.tensor([value], dtype=torch.float64) for value in (1 + 1e-12, 1.0))
    assert detection(known, others)["auroc"] == 100.0


def test_detection_leaves_the_default_dtype_as_it_is() -> None:
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            detection(*tied(4))
            assert torch.get_default_dtype() == dtype
        finally:
            torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_detection_refuses_scores_that_are_no_numbers(bad: float) -> None:
    good, spoilt = torch.tensor([0.0, 1.0]), torch.tensor([0.0, bad])
    with pytest.raises(ValueError, match="Some in-distribution scores are NaN or infinite"):
        detection(spoilt, good)
    with pytest.raises(ValueError, match="Some OOD scores are NaN or infinite"):
        detection(good, spoilt)


@pytest.mark.parametrize("bad", [torch.zeros(0), torch.zeros(2, 1), torch.tensor(1.0)])
def test_detection_refuses_no_scores_and_other_shapes(bad: Tensor) -> None:
    with pytest.raises(ValueError, match=r"at least one in-distribution score, as \(N,\), not "):
        detection(bad, torch.zeros(2))
    with pytest.raises(ValueError, match="at least one OOD score"):
        detection(torch.zeros(2), bad)


# Scores --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prediction() -> Prediction:
    generator = torch.Generator().manual_seed(0)
    cosines, local = (torch.randn(shape, generator=generator).tanh() for shape in ((5, 7), (5, 9, 7)))
    return Prediction(100 * cosines, cosines, local)


def test_scores_of_gallop_equal_the_authors_numbers() -> None:
    backbone = pb.Backbone(golden_clip.build_clip(), tokenizer=golden_clip.tokenizer())
    method = pb.create_method("gallop", backbone, golden_clip.CLASS_NAMES, n_global=4, n_local=4, topk=(2, 4, 6, 8))
    pb.load_official_checkpoint(method, GOLDEN / "gallop_g4l4-s7101")
    with torch.no_grad():
        scores = scores_of(method(golden_clip.build_images()), open_scores(["mcm", "l_mcm", "gl_mcm"]))
    stored = np.load(GOLDEN / "gallop_g4l4-s7101.npz")
    for name, field in (("mcm", "score_MCM"), ("l_mcm", "score_L-MCM"), ("gl_mcm", "score_GL-MCM")):
        # Stored as the authors have them: larger for out-of-distribution images.
        torch.testing.assert_close(scores[name], torch.from_numpy(-stored[field]), atol=1e-5, rtol=0)


def test_scores_are_their_formulas_in_float64(prediction: Prediction) -> None:
    logits, cosines, local = (t.double() for t in (prediction.logits, prediction.cosines, prediction.local))
    of_image, of_patches = cosines.softmax(dim=1).amax(dim=1), local.softmax(dim=2).amax(dim=(1, 2))
    expected = {
        "mcm": of_image,
        "gl_mcm": of_image + of_patches,
        "l_mcm": of_patches,
        "msp": logits.softmax(dim=1).amax(dim=1),
        "max_logit": logits.amax(dim=1),
        "energy": logits.exp().sum(dim=1).log(),
    }
    measured = scores_of(prediction, ALL)
    assert list(measured) == list(expected) == list(ALL)
    for name, scores in measured.items():
        torch.testing.assert_close(scores, expected[name].float(), atol=1e-6, rtol=1e-6)


def test_scores_of_half_precision_are_computed_in_float32(prediction: Prediction) -> None:
    half = Prediction(prediction.logits.half(), prediction.cosines.half(), prediction.local.half())
    again = Prediction(half.logits.float(), half.cosines.float(), half.local.float())
    for name, scores in scores_of(half, ALL).items():
        assert scores.dtype == torch.float32
        assert scores.equal(scores_of(again, ALL)[name])


def test_sure_images_are_not_tied_too_early() -> None:
    # At logits near 100 float32 steps by 8e-6, so a difference of logarithms would round both to 1.
    scores = ALL["msp"].of(torch.tensor([[100.0, 86.0], [100.0, 85.0]]))
    assert scores[0] < scores[1] < 1


@pytest.mark.parametrize("chunk", [1, 63, 64, 130, 10**6])
def test_chunks_change_nothing(prediction: Prediction, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = scores_of(prediction, ALL)
    monkeypatch.setattr(ood, "_CHUNK", chunk)
    for name, scores in scores_of(prediction, ALL).items():
        assert scores.equal(expected[name])


def test_no_images_have_no_scores() -> None:
    empty = Prediction(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0, 4, 3))
    assert {tuple(scores.shape) for scores in scores_of(empty, ALL).values()} == {(0,)}


@pytest.mark.parametrize(
    ("absent", "left_out", "reason"),
    [
        ({"local": None}, ["gl_mcm", "l_mcm"], "GL-MCM needs cosines of the patches, which this method does not give"),
        ({"cosines": None, "local": None}, ["mcm", "gl_mcm", "l_mcm"], "MCM needs unscaled cosines, which"),
        ({"logits": None}, ["msp", "max_logit", "energy"], "MSP needs logits, which this method does not give"),
        ({}, [], ""),
    ],
)
def test_scores_without_their_input_are_left_out_with_a_reason(
    prediction: Prediction, absent: dict[str, None], left_out: list[str], reason: str
) -> None:
    partial = Prediction(**{**vars(prediction), **absent})
    assert list(missing(partial, ALL)) == left_out
    assert "".join(missing(partial, ALL).values()).startswith(reason)
    assert list(scores_of(partial, ALL)) == [name for name in ALL if name not in left_out]
    wanted = ["msp", "mcm"] if not absent else []
    assert list(scores_of(partial, open_scores(wanted))) == wanted


def test_an_unknown_score_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(UsageError, match="Unknown score 'glmcm'. Did you mean 'gl_mcm'?"):
        open_scores(["mcm", "glmcm"])


def test_every_score_is_listed_under_its_own_name_with_a_paper() -> None:
    assert list(ALL) == list(registry.load("protocols", "ood").scores)
    for name in registry.names("scores"):
        facts = registry.facts("scores", name)
        assert registry.load("scores", name).__module__ == f"promptbench.metrics.scores.{name}"
        assert "arXiv:" in facts.docstring and facts.attributes["title"] and facts.attributes["needs"]
    assert all(score.name == name for name, score in ALL.items())
