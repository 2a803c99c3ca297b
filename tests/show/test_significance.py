"""One row tested against all others, through the command, against hand calculations and scipy."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

import promptbench as pb
from promptbench.cli import main
from promptbench.metrics.classification import harmonic_mean
from promptbench.results.result import Result
from promptbench.results.spec import Spec, to_plain

SETS = ("caltech101", "dtd", "eurosat", "food101", "sun397", "ucf101")
T = 4.302652729911275  # Student's t, 2 degrees of freedom, 0.975


def make(metrics: dict[str, float], *, seed: int = 1, notes: dict[str, str] | None = None, **facts: Any) -> Result:
    known: dict[str, Any] = {
        "suite": "clip11",
        "protocol": "base2new",
        "config": {"n_ctx": 2},
        "recipe": {"epochs": 5, "origin": "authors"},
        "shots": 16,
        "backbone": "ViT-B-16-quickgelu:openai",
        "threads": 1,
        "data_seed": seed,
        "train_seed": seed,
    }
    conditions = facts.pop("conditions", {})
    spec = Spec(**{**known, **facts})
    return Result(
        spec=spec, conditions=conditions, metrics=metrics, notes=notes or {}, versions={}, commit="", created=""
    )


def pair(base: float, new: float, **facts: Any) -> Result:
    return make({"base/accuracy": base, "new/accuracy": new, "h": harmonic_mean(base, new)}, **facts)


def row(method: str, differences: Sequence[float], by_seed: Sequence[float]) -> list[Result]:
    """Base, new and so H of a method are 70, plus this on each dataset, plus that for each seed."""
    return [
        pair(70 + difference + of_seed, 70 + difference + of_seed, dataset=dataset, method=method, seed=seed)
        for dataset, difference in zip(SETS, differences, strict=False)
        for seed, of_seed in enumerate(by_seed, start=1)
    ]


# coop: 69, 70, 71 over the seeds. Differences to it by dataset, seeds averaged, and seed by seed of the average:
#   maple   1, 2, 3, 4, 5, 6    all positive: p = 2/64; mean 3.5; seeds 2.5, 3.5, 4.5, so s = 1
#   vpt     0, 1, 1, -1, 2, 3   ranks 2, 2, -2, 4, 5 without the zero: of 32 sums {} and three times 2 lie as far below,
#                               as many above, so p = 8/32; mean 1; seeds -1, 1, 3, so s = 2
#   kgcoop  -1 everywhere       one rank for all, all negative: p = 2/64; one seed, 69 - 69 = 0
# Holm: 2/64 and 2/64 times 3, then 8/32.
BY_HAND = [
    *row("coop", (0,) * 6, (-1, 0, 1)),
    *row("maple", (1, 2, 3, 4, 5, 6), (-2, 0, 2)),
    *row("vpt", (0, 1, 1, -1, 2, 3), (-3, 0, 3)),
    *row("kgcoop", (-1,) * 6, (0,)),
    *row("ivlp", (9,) * 5, (-1, 0, 1)),  # not on UCF101
    *(
        make({"base/accuracy": 80.0}, notes={"new/accuracy": "it knows no new classes"}, dataset=d, method="taskres")
        for d in SETS
    ),
]


@pytest.fixture
def table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Writes results and reads what the command prints of them."""

    def called(results: Sequence[Result], *flags: str, code: int = 0) -> str:
        for result in results:
            path = tmp_path / f"{result.name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(to_plain(result)), encoding="utf-8")
        assert main.main(["table", "--results", str(tmp_path), *flags]) == code
        out, err = capsys.readouterr()
        return err if code else out

    return called


def lines_of(text: str) -> dict[str, dict[str, str]]:
    """The lines of a CSV that are tests, by method."""
    return {line["method"]: line for line in csv.DictReader(io.StringIO(text)) if line["kind"] == "test"}


def numbers(line: dict[str, str], *names: str) -> list[float | None]:
    return [float(line[f"test/{name}"]) if line[f"test/{name}"] else None for name in names]


def test_tests_by_hand(table: Any) -> None:
    found = lines_of(table(BY_HAND, "--test", "coop", "--format", "csv"))
    exact = ("difference", "won", "tied", "lost", "p", "p_holm", "smallest_p")
    assert numbers(found["maple"], *exact) == pytest.approx([3.5, 6, 0, 0, 2 / 64, 6 / 64, 2 / 64])
    assert numbers(found["vpt"], *exact) == pytest.approx([1, 4, 1, 1, 8 / 32, 8 / 32, 2 / 64])
    assert numbers(found["kgcoop"], *exact) == pytest.approx([-1, 0, 0, 6, 2 / 64, 6 / 64, 2 / 64])
    over_seeds = ("common_seeds", "over_seeds", "low", "high", "seeds_for_1_point")
    half = T / 3**0.5
    assert numbers(found["maple"], *over_seeds) == pytest.approx([3, 3.5, 3.5 - half, 3.5 + half, 8])  # 2.8^2 = 7.84
    assert numbers(found["vpt"], *over_seeds) == pytest.approx([3, 1, 1 - 2 * half, 1 + 2 * half, 32])  # 5.6^2 = 31.36
    assert numbers(found["kgcoop"], *over_seeds) == [1, 0, None, None, None]
    assert {line["test/compared"] + line["test/against"] for line in found.values()} == {"Hcoop"}


def test_a_row_without_a_dataset_of_the_named_one_is_not_tested(table: Any) -> None:
    text = table(BY_HAND, "--test", "coop", "--format", "csv")
    found = lines_of(text)
    assert (found["ivlp"]["remark"], found["ivlp"]["test/p"]) == ("not tested: no H on UCF101", "")
    assert (found["taskres"]["remark"], found["taskres"]["test/p_holm"]) == ("it knows no new classes", "")
    markdown = table([], "--test", "coop")
    number = re.search(r"\[(\d)\] not tested: no H on UCF101\n", markdown)
    assert number and re.search(rf"\| IVLP +\| +– \[{number[1]}\] \| +– \|", markdown)


def test_the_datasets_of_the_named_row_are_the_pairs(table: Any) -> None:
    found = lines_of(table(BY_HAND, "--test", "ivlp", "--format", "csv"))
    assert numbers(found["coop"], "datasets", "difference", "lost", "p", "smallest_p") == [5, -9, 5, 2 / 32, 2 / 32]


def test_the_table_says_what_it_shows_and_the_smallest_p(table: Any) -> None:
    text = table(BY_HAND, "--test", "coop", "--dataset", *SETS)
    assert "### each row against CoOp\n" in text
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    (head,) = [line for line in cells if line[0] == "compared"]
    assert head[2:] == [
        *("datasets", "mean Δ", "won/tied/lost", "p", "p (Holm)", "seeds", "Δ over seeds [95 %]", "seeds for 1 point")
    ]
    rows = {line[1]: line[2:] for line in cells[cells.index(head) :]}
    assert rows["MaPLe"] == ["6", "+3.5", "6/0/0", "0.0312", "0.0938", "3", "+3.5 [+1.0, +6.0]", "8"]
    assert rows["KgCoOp"] == ["6", "−1.0", "0/0/6", "0.0312", "0.0938", "1", "+0.0 (one seed)", "–"]
    assert "The smallest p that 6 datasets can give is 2/2^6 = 0.0312, corrected for 3 rows 0.0938: none can" in text
    assert "exact two-sided Wilcoxon signed-rank test" in text and "in points, from −100 to 100, more is better" in text
    two = table([], "--test", "coop", "--method", "coop", "maple")
    assert "is 2/2^6 = 0.0312, corrected for 1 row 0.0312.\n" in two


def test_exact_p_is_scipys_on_many_datasets(table: Any) -> None:
    figures = np.random.default_rng(5).uniform(40, 90, size=(3, 11))
    results = [
        pair(figure, figure, dataset=f"set{place}", method=method)
        for method, of_row in zip(("coop", "maple", "vpt"), figures, strict=True)
        for place, figure in enumerate(of_row)
    ]
    found = lines_of(table(results, "--test", "coop", "--format", "csv"))
    for place, method in ((1, "maple"), (2, "vpt")):
        expected = scipy.stats.wilcoxon(figures[place], figures[0], method="exact").pvalue
        assert numbers(found[method], "p")[0] == pytest.approx(expected)


def test_json_has_the_tests_only_where_asked(table: Any) -> None:
    (plain,) = json.loads(table(BY_HAND, "--format", "json"))["tables"]
    (document,) = json.loads(table([], "--test", "coop", "--format", "json"))["tables"]
    (test,) = document["tests"]
    assert "tests" not in plain and plain["remarks"] == document["remarks"][: len(plain["remarks"])]
    assert (test["against"], test["column"]["key"], sorted(test["datasets"])) == ("coop", "h", list(SETS))
    assert (test["smallest_p"], test["rows_tested"]) == (2 / 64, 3)
    rows = {one["method"]: one for one in test["rows"]}
    assert (rows["maple"]["p"], rows["maple"]["won"], rows["kgcoop"]["low"]) == (2 / 64, 6, None)
    assert (rows["ivlp"]["p"], rows["ivlp"]["won"], rows["ivlp"]["why"]) == (None, None, "not tested: no H on UCF101")


@pytest.mark.parametrize("flag", ["--test", "--delta"])
def test_a_warning_names_rows_that_the_seeds_do_not_separate_and_how_many_could(table: Any, flag: str) -> None:
    text = table(BY_HAND, flag, "coop")
    warnings = [line for line in text.splitlines() if line.startswith("Warning")]
    assert warnings == [
        "Warning: the seeds cannot separate these rows from CoOp by H: VPT +1.0 [−4.0, +6.0] (3 seeds; 32 could).",
        "Warning: one seed cannot separate these rows from CoOp by H: KgCoOp.",
    ]
    assert text.count("ceil((2.8 s / 1 point)^2), with s the standard deviation of those differences (ddof 1)") == 1
    assert "Warning" not in table([], "--sort", "H")


def test_one_warning_is_enough(table: Any) -> None:
    assert table(BY_HAND, "--test", "coop", "--delta", "coop").count("Warning: ") == 2
    text = table(BY_HAND, "--test", "coop", "--delta", "maple")
    assert (
        text.count("from CoOp by H") == 2 and text.count("Warning: one seed cannot separate these rows from MaPLe") == 1
    )


def test_another_column_is_tested_where_one_is_named(table: Any) -> None:
    results = [pair(70, 60, dataset=name, method="a") for name in SETS]
    results += [pair(71, 59, dataset=name, method="b") for name in SETS]
    found = lines_of(table(results, "--test", "a", "--column", "new", "--format", "csv"))
    assert numbers(found["b"], "difference", "lost") == [-1, 6]
    assert found["b"]["test/compared"] == "new"


def test_less_wins_where_less_is_better(table: Any) -> None:
    results = [make({"joint/ece": 10.0}, dataset=name, method="a") for name in SETS]
    results += [make({"joint/ece": 11.0}, dataset=name, method="b") for name in SETS]
    text = table(results, "--test", "a", "--metric", "ece", "--format", "csv")
    assert numbers(lines_of(text)["b"], "difference", "won", "lost") == [1, 0, 6]
    assert "less is better. Won" in table([], "--test", "a", "--metric", "ece")


def transfer(method: str, first: float, seed: int = 1) -> Result:
    metrics = {"source/accuracy": 99.0, **{f"{name}/accuracy": first + place for place, name in enumerate(SETS)}}
    metrics["average/accuracy"] = first + 2.5
    images = dict.fromkeys(("source", *SETS), 9)
    return make(
        metrics,
        seed=seed,
        dataset="imagenet",
        method=method,
        protocol="cross_dataset",
        conditions={"images": images},
        evaluated={name: {} for name in SETS},
    )


def test_targets_of_one_source_are_the_pairs(table: Any) -> None:
    results = [
        *(transfer("a", 50 + seed, seed) for seed in (1, 2)),
        *(transfer("b", 52 + seed, seed) for seed in (1, 2)),
    ]
    found = lines_of(table(results, "--protocol", "cross_dataset", "--test", "a", "--format", "csv"))
    assert found["b"]["dataset"] == "imagenet"
    assert numbers(found["b"], "datasets", "difference", "won", "p", "over_seeds") == [6, 2, 6, 2 / 64, 2]


def test_scores_are_tested_apart(table: Any) -> None:
    def scored(method: str, shift: float) -> Result:
        metrics = {"id/accuracy": 80.0}
        for score in ("mcm", "msp"):
            metrics |= {f"{name}/{score}/auroc": 60 + shift + place for place, name in enumerate(SETS)}
            metrics[f"average/{score}/auroc"] = 62.5 + shift
        images = dict.fromkeys(("id", *SETS), 9)
        return make(metrics, dataset="imagenet", method=method, protocol="ood", conditions={"images": images})

    results = [scored("a", 0), scored("b", 1)]
    text = table(results, "--protocol", "ood", "--test", "a", "--format", "csv")
    lines = [line for line in csv.DictReader(io.StringIO(text)) if line["kind"] == "test"]
    assert [(line["dataset"], *numbers(line, "datasets", "difference", "p_holm")) for line in lines] == [
        ("MCM", 6, 1, 2 / 64),
        ("MSP", 6, 1, 2 / 64),
    ]


def test_zero_shot_is_compared_at_any_number_of_shots(table: Any) -> None:
    facts: dict[str, Any] = {"protocol": "few_shot"}
    results = [
        make({"test/accuracy": 60.0 + shots}, dataset=d, method="coop", shots=shots, **facts)
        for d in SETS
        for shots in (1, 16)
    ]
    results += [make({"test/accuracy": 50.0}, dataset=d, method="zeroshot", shots=0, recipe={}, **facts) for d in SETS]
    found = lines_of(table(results, "--protocol", "few_shot", "--test", "zeroshot", "--format", "csv"))
    assert numbers(found["coop"], "difference", "won") == [26, 6] and found["coop"]["test/compared"] == "16 shots"


def test_what_cannot_be_tested_is_refused_in_one_line(table: Any) -> None:
    assert "Unknown row to test against 'cooop'. Did you mean 'coop'?" in table(BY_HAND, "--test", "cooop", code=2)
    assert "Unknown column 'bases'. Did you mean 'base'?" in table([], "--test", "coop", "--column", "bases", code=2)
    assert "tested against taskres, which has no H; name another" in table([], "--test", "taskres", code=2)
    assert "--column says what --test compares" in table([], "--column", "new", code=2)
    several = [pair(70, 60, dataset="dtd", method="x", config={"n_ctx": n}) for n in (2, 4)]
    assert "'x' has several rows; test against one of x (n_ctx=2), x (n_ctx=4)" in table(several, "--test", "x", code=2)


def test_the_function_asks_as_the_command_does(table: Any, tmp_path: Path) -> None:
    printed = table(BY_HAND, "--test", "maple", "--column", "new")
    assert str(pb.table(pb.read_results(tmp_path), test="maple", column="new")) + "\n" == printed


def test_lines_of_seeds_leave_the_test_as_it_is(table: Any) -> None:
    means, seeds = (table(BY_HAND, "--test", "coop", "--format", "csv", *more) for more in ((), ("--per-seed",)))
    assert lines_of(means) == lines_of(seeds)
