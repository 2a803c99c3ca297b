"""A run has two seeds: one draws its images, the other everything that a training draws."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import make_fake
import pytest

from promptbench.cli.flags import request_of
from promptbench.cli.main import parser
from promptbench.results.result import Result
from promptbench.runs import evaluate, train
from promptbench.runs.plan import plan_runs
from promptbench.runs.session import Place, Session
from promptbench.training import fit as training_loop

SETTINGS = ("coop.epochs=1", "coop.batch=4")
CALL = ["run", "--suite", "clip11", "--method", "coop", "--dataset", "dtd", "--shots", "1", "--device", "cpu"]
SEEDS = ["--data-seed", "1", "--train-seed", "2", "--threads", "1", "--set", *SETTINGS]


@pytest.mark.slow
def test_each_seed_draws_its_own(
    carry_out: Callable[..., Result], tiny_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_fake.make("dtd", tmp_path / "data")
    request = request_of(parser().parse_args([*CALL, "--backbone", tiny_name, *SEEDS]))
    (run,) = plan_runs(request)
    used: set[tuple[str, int]] = set()

    def watch(module: Any, name: str) -> None:
        function = getattr(module, name)

        def watched(*args: Any, **keywords: Any) -> Any:
            used.add((name, keywords["seed"] if "seed" in keywords else args[-1]))
            return function(*args, **keywords)

        monkeypatch.setattr(module, name, watched)

    for name in ("open_selection", "instantiate", "show_training_images", "batches_of"):
        watch(train, name)
    watch(training_loop, "fit")
    watch(evaluate, "open_selection")
    carry_out(Session(Place(tmp_path / "runs", (tmp_path / "data",)), request.suite), run)
    images, training = {("open_selection", 1)}, ("instantiate", "show_training_images", "batches_of", "fit")
    assert used == images | {(name, 2) for name in training}
