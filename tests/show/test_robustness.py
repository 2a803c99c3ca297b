"""What is shown of corrupted images: the page's intervals and the plot's points, against hand calculations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from promptbench.cli.main import main
from promptbench.config import UsageError
from promptbench.metrics.statistics import paired_interval
from promptbench.results.result import Result, write_result
from promptbench.results.spec import Spec
from promptbench.show.evidence.pages import page_of
from promptbench.show.plots import robustness
from promptbench.show.plots.source import NothingToShow, read_source
from promptbench.show.tables.rows import corruption_text
from promptbench.show.tables.show import Question


def make(method: str, clean: float, corrupted: Mapping[str, float], seed: int = 1, **spec: Any) -> Result:
    """A run whose accuracy under each corruption, such as `fog:1`, is so."""
    by_kind: dict[str, list[float]] = {}
    for name, value in corrupted.items():
        by_kind.setdefault(name.partition(":")[0], []).append(value)
    kinds = {kind: sum(values) / len(values) for kind, values in by_kind.items()}
    mean = sum(kinds.values()) / len(kinds)
    accuracies = {"clean": clean, **corrupted, **kinds, "average": mean}
    facts: dict[str, Any] = {
        **{"suite": "mini", "protocol": "robustness", "dataset": "mini_shapes", "method": method, "backbone": "mini"},
        **{"shots": 0 if method == "zeroshot" else 16, "data_seed": seed, "train_seed": seed, "threads": 1},
        **{"corruption": " ".join(corrupted), **spec},
    }
    return Result(
        spec=Spec(**facts),
        conditions={"texts_told": "generic", "images": dict.fromkeys(("clean", *corrupted), 10)},
        metrics={**{f"{name}/accuracy": value for name, value in accuracies.items()}, "drop": clean - mean},
        cost={},
        versions={},
        commit="",
        created="2026-01-02T03:04:05+00:00",
    )


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """Two seeds: zero-shot loses 30 of 80; coop 33 and 35 of 90, maple 31 and 33; means 50, and 56 and 56 of both."""
    runs = []
    for seed in (1, 2):
        runs.append(make("zeroshot", 80, {"snow:1": 70, "snow:5": 50, "fog:1": 60, "fog:5": 20}, seed))
        runs.append(make("coop", 90, {"snow:1": 80, "snow:5": 60, "fog:1": 66, "fog:5": 26 - 4 * seed}, seed))
        runs.append(make("maple", 88, {"snow:1": 80, "snow:5": 60, "fog:1": 66, "fog:5": 26 - 4 * seed}, seed))
    for run in runs:
        write_result(tmp_path, run)
    return tmp_path


def test_the_page_pairs_drops_with_those_of_zero_shot(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """coop: 90 - (70 + 44) / 2 = 33, then 34; maple 31, 32; their mean 32, 33; zero-shot 80 - (60 + 40) / 2 = 30."""
    assert main(["evidence", "robustness", "--results", str(stored)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(
        "# Robustness to corruptions\n\nOn mini, the 2 rows that train lose 32.5 points of accuracy to "
    )
    assert "corruption on average, from 31.5 (MaPLe) to 33.5 (CoOp): " in said
    assert f": {paired_interval([2, 3])} points against zero-shot CLIP of the same text prior, beside " in said
    assert f"beside {paired_interval([7, 6])} points of accuracy on the corrupted images." in said
    (coop,) = (line for line in said.splitlines() if line.startswith("| CoOp") and "[" in line)
    cells = [cell.strip() for cell in coop.strip("|").split("|")]
    assert cells == [
        "CoOp",
        "generic",
        "90.0",
        "56.5",
        "33.5",
        str(paired_interval([7, 6])),
        str(paired_interval([3, 4])),
        "2",
    ]
    (kinds,) = (line for line in said.splitlines() if line.startswith("| CoOp") and "[" not in line)
    assert [cell.strip() for cell in kinds.strip("|").split("|")] == ["CoOp", "20.0", "47.0"]
    assert "seeds 1, 2: snow, fog at severity 1, 5" in said and "16 shots" in said and "less is better" in said


def test_rows_are_compared_within_their_text_prior(stored: Path) -> None:
    told = replace(make("zeroshot", 85, {"snow:1": 80, "fog:1": 80}), conditions={"texts_told": "dataset"})
    write_result(stored, told)
    for method, clean in (("zeroshot", 80), ("coop", 90)):
        write_result(stored, make(method, clean, {"snow:1": 70, "fog:1": 70}, preset="other"))
    said = page_of("robustness", Question(places=[stored], protocols=()))
    assert (
        "CoOp (other) loses 20.0 points of accuracy to corruption: +10.0 (one seed)" in said
    )  # not +15 to the told one


def test_other_corruptions_are_compared_apart(stored: Path) -> None:
    for method, clean in (("zeroshot", 80), ("coop", 90)):
        write_result(stored, make(method, clean, {"contrast:3": 75}))
    said = page_of("robustness", Question(places=[stored], protocols=()))
    assert said.count("On mini, ") == 2 and "CoOp loses 15.0 points of accuracy to corruption: +10.0 (one seed)" in said
    assert main(["table", "--results", str(stored), "--protocol", "robustness"]) == 0


def test_a_page_without_zero_shot_says_so(tmp_path: Path) -> None:
    write_result(tmp_path, make("coop", 90, {"fog:1": 66}))
    with pytest.raises(UsageError, match="compares with zero-shot CLIP, of which there is no result; run it too"):
        page_of("robustness", Question(places=[tmp_path], protocols=()))
    with pytest.raises(UsageError, match="There is no robustness result of 'mini_neon'"):
        page_of("robustness", Question(places=[tmp_path], protocols=(), datasets=("mini_neon",)))


def test_the_plot_has_the_mean_over_kinds_by_severity_and_drops_by_kind(stored: Path) -> None:
    found = robustness.data(read_source([stored], "robustness"))
    assert found["severities"] == ["0", "1", "5"] and found["kinds"] == ["snow", "fog"]
    (coop,) = (series for series in found["series"] if series["method"] == "CoOp")
    assert coop["by_severity"] == {"0": [90, 0], "1": [73, 0], "5": [(41 + 39) / 2, 1]}
    assert coop["by_kind"] == {"snow": [20, 0], "fog": [47, 1]}
    with pytest.raises(NothingToShow):
        robustness.data(read_source([stored], "robustness", ["linear_probe"]))


@pytest.mark.parametrize(
    ("corruption", "text"),
    [
        ("fog:3", "fog at severity 3"),
        ("fog:1 snow:1 fog:5 snow:5", "fog, snow at severity 1, 5"),
        ("fog:1 snow:2", "fog:1 snow:2"),
    ],
)
def test_corruptions_are_said_shortly(corruption: str, text: str) -> None:
    assert corruption_text(corruption) == text
