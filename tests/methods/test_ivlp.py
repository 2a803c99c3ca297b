"""IVLP and VPT: recipes of their authors, and IVLP with text prompts alone."""

from __future__ import annotations

import pytest

from promptbench import registry
from promptbench.recipe import resolve
from promptbench.training.fit import learning_rate


@pytest.mark.parametrize("protocol", ["cross_dataset", "domain_generalization"])
@pytest.mark.parametrize(("name", "lr"), [("vpt", 0.0025), ("ivlp", 0.0035)])
def test_across_datasets_they_are_tested_after_the_second_epoch(name: str, lr: float, protocol: str) -> None:
    recipe = resolve(registry.load("methods", name), name, protocol=protocol, dataset="imagenet", shots=16).recipe
    assert recipe is not None
    assert (recipe.epochs, recipe.lr, recipe.batch, recipe.origin) == (2, lr, 4, "authors")
    of_two, of_five = ([learning_rate(lr, epoch, epochs) for epoch in (0, 1)] for epochs in (2, 5))
    assert of_two == of_five == [1e-5, lr]  # the same training, whether it was to end there or three epochs later
