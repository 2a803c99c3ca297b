"""Tip-Adapter-F: the cache of Tip-Adapter, its keys learned.

Zhang et al., "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification", ECCV 2022, arXiv:2111.03930.
Code by the authors: https://github.com/gaopengcuhk/Tip-Adapter, main.py, utils.py and configs

    logits(x) = exp(s) * f(x) W^T + alpha * exp(-beta * (1 - f(x) F^T)) V

as in Tip-Adapter, whose keys F (N, D) are the first values here. Values V and zero-shot weights W are not learned, and
alpha and beta stay what they are while the keys learn; a search comes after it.

Odd points of the authors' code, kept here:
  - keys are not normalised again, so that they lose their length 1 and affinities are no longer cosines;
  - weight decay acts on the keys themselves, not on how far they moved;
  - the grid of the search, as in Tip-Adapter.

Differs from it: the keys are those of the last step, where the authors keep the epoch that is best on the test images
and report the better one of that and the search, which is not done. All that Tip-Adapter says of alpha, beta, the
factor 100, the cache and cosines holds here, too.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor, nn

from promptbench.method import Recipe

from .tip_adapter import TipAdapter

MAIN = "authors' main.py and configs/*.yaml"
EUROSAT = "authors' configs/eurosat.yaml"


def recipe(origin: Literal["authors", "transferred"], source: str, epochs: int = 20) -> Recipe:
    """What all the authors' trainings have in common."""
    return Recipe(
        epochs=epochs,
        lr=0.001,
        schedule="step",
        warmup_epochs=0,
        batch=256,
        drop_last=False,
        optimizer="adamw",
        eps=1e-4,
        weight_decay=0.01,
        crop_scale=(0.5, 1.0),
        origin=origin,
        source=source,
    )


class TipAdapterF(TipAdapter):
    """One learned key for every training image."""

    category = "cache, trained"
    parameters_vit_b16 = 0  # one joint dimension for every training image: none before `prepare`
    trains = True
    authors_half = ("keys",)
    kept = ("values", "alpha", "beta")
    recipes: ClassVar = {
        ("few_shot", "eurosat"): recipe("authors", EUROSAT, 100),
        ("few_shot", "*"): recipe("authors", MAIN),
        ("base2new", "eurosat"): recipe("transferred", "its few-shot recipe for EuroSAT", 100),
        ("*", "*"): recipe("transferred", "its few-shot recipe; none was published for this protocol"),
    }

    def remember(self, keys: Tensor) -> None:
        if not len(getattr(self, "keys", ())):  # else they were loaded before
            self.keys = nn.Parameter(keys)

    def official_parameters(self) -> dict[str, nn.Parameter]:
        return {"adapter.weight": self.keys}  # type: ignore[dict-item]
