"""What published figures say of each other, through the command, on made-up files and on those that are shipped."""

from __future__ import annotations

import csv
import io
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from promptbench.cli.main import main
from promptbench.results.literature import disagreements
from promptbench.results.papers import COLUMNS, LATER, load
from promptbench.show.plots import literature
from promptbench.show.plots.picture import look

SHOWN = {"method": "MaPLe", "label": "maple", "protocol": "base2new", "backbone": "ViT-B/16", "shots": "16"}


def written(file: Path, *rows: dict[str, str], columns: tuple[str, ...] = COLUMNS) -> None:
    with open(file, "w", newline="", encoding="utf-8") as text:
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows({**SHOWN, "source": file.stem, **row} for row in rows)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main(["literature", *words, "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def few_shot(dataset: str, value: str, **cells: str) -> dict[str, str]:
    return {"protocol": "few_shot", "metric": "accuracy", "dataset": dataset, "value": value, **cells}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two sources: one prints an H that does not follow and another figure than the other one."""
    written(
        tmp_path / "one.csv",
        {"dataset": "dtd", "metric": "base/accuracy", "value": "86.23"},
        {"dataset": "dtd", "metric": "new/accuracy", "value": "80.03"},
        {"dataset": "dtd", "metric": "h", "value": "82.20", "note": "as printed"},
        few_shot("dtd", "70.00", selection="test", by_dataset="yes", trials="7"),
        few_shot("dtd", "60.00", shots="1", selection="test"),
        columns=(*COLUMNS, *LATER),
    )
    written(
        tmp_path / "other.csv",
        few_shot("dtd", "70.01"),
        few_shot("eurosat", "80.0", source="another (secondary: quotes others)"),
        few_shot("dtd", "60.5", shots="1", note="read off a plot"),
        {**few_shot("dtd", "50.00", source="another"), "method": "A + B", "label": ""},
        {**few_shot("dtd", "50.10", source="another", note="the same one"), "method": "B+A", "label": ""},
        {**few_shot("dtd", "55.00", source="another"), "method": "A++", "label": ""},
    )
    return tmp_path


def test_coverage_counts_what_each_source_prints(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(capsys, "coverage", "--figures", str(folder), "--method", "maple")["coverage"]
    assert [(line["source"], line["protocol"], line["shots"], line["datasets"], line["figures"]) for line in lines] == [
        ("one", "base2new", [16], 1, 3),
        ("one", "few_shot", [1, 16], 1, 2),
        ("other", "few_shot", [1, 16], 2, 3),
    ]
    assert [line["selection"] for line in lines] == ["unknown", "test", "unknown"]


def test_sources_that_differ_by_more_than_their_digits(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """70.00 and 70.01 may both be 70.005; combinations are the same in any order; pluses of a name are no `and`."""
    found = run(capsys, "disagreements", "--figures", str(folder), "--protocol", "few_shot")["disagreements"]
    assert [(one["kind"], one["method"], one["shots"], one["printed"], one["note"]) for one in found] == [
        ("sources differ", "MaPLe", 1, "60.00 (one); 60.5 (other)", "read off a plot"),
        ("sources differ", "A + B", 16, "50.00 (other); 50.10 (other)", "the same one"),
    ]


def test_what_an_h_that_does_not_follow_would_need(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """2 * 86.23 * 80.03 / 166.26 = 83.01; 82.2 * 86.23 / (172.46 - 82.2) = 78.53; 82.2 * 80.03 / 77.86 = 84.49."""
    found = run(capsys, "disagreements", "--figures", str(folder), "--protocol", "base2new")["disagreements"]
    assert [(one["kind"], one["printed"], one["needed"]) for one in found] == [
        ("H", "base 86.23, new 80.03, H 82.20 (one)", "H 83.01 or new 78.53 or base 84.49")
    ]


@pytest.mark.parametrize(("average", "fits"), [("70.0", True), ("70.1", True), ("70.2", False)])
def test_an_average_is_the_mean_of_its_datasets_but_for_rounding(tmp_path: Path, average: str, fits: bool) -> None:
    """Four values of 70.0 lie anywhere in 69.95 to 70.05, and so does their mean; 70.1 may be 70.05."""
    parts = [few_shot(name, "70.0") for name in ("dtd", "eurosat", "ucf101", "food101")]
    written(tmp_path / "one.csv", *parts, few_shot("average4", average), few_shot("imagenet", "10.0"))
    found = disagreements(load(tmp_path))
    assert [one.needed for one in found] == ([] if fits else ["the mean of one's 4 is 70.000"])


def test_mma_on_ucf101_is_found_as_it_is_shipped(capsys: pytest.CaptureFixture[str]) -> None:
    """Its table prints 80.03 on new classes, where its H and the mean of eleven, 76.80, both need about 78.5."""
    found = run(capsys, "disagreements", "--method", "mma", "--dataset", "ucf101", "average11")["disagreements"]
    assert [(one["kind"], one["needed"]) for one in found] == [
        ("H", "H 83.01 or new 78.53 or base 84.49"),
        ("average", "the mean of rmadapter's 11 is 76.936"),
    ]
    wanted_by_the_mean = 80.03 - 11 * (76.936 - 76.80)
    assert wanted_by_the_mean == pytest.approx(78.53, abs=0.01)


def test_every_shipped_contradiction_has_a_note_of_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    found = run(capsys, "disagreements")["disagreements"]
    assert {one["kind"] for one in found} == {"sources differ", "H", "average"} and len(found) >= 30
    alone = [one for one in found if not one["note"]]
    assert {(one["kind"], one["method"]) for one in alone} == {("average", "MMA"), ("average", "PromptAlign")}


def test_tables_are_text_or_csv(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["literature", "--figures", str(folder)]
    assert main(call) == 0
    text = capsys.readouterr().out
    assert text.count("### ") == 2 and "Figures are in percent" in text and "| one " in text
    assert main([*call, "coverage", "--format", "csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(lines) == 6 and lines[1]["shots"] == "1, 16"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["coverag"], "Unknown part 'coverag'. Did you mean 'coverage'?"),
        (["--format", "xml"], "Unknown format 'xml'."),
        (["--method", "mapel"], "Unknown method 'mapel'. Did you mean 'maple'?"),
        (["--protocol", "base2now"], "Unknown protocol 'base2now'. Did you mean 'base2new'?"),
        (["--dataset", "ucf"], "Unknown dataset 'ucf'."),
        (["--format", "csv"], "--format csv holds one table; name coverage or disagreements."),
        (["--plot", "h.gif"], "The picture h.gif cannot be written: its name must end in png, svg, pdf, pgf."),
        (["--plot", "h.png", "--protocol", "ood"], "There is no published h of base2new on average11"),
    ],
)
def test_mistakes_are_one_sentence(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["literature", *words]) == 2
    assert said in capsys.readouterr().err


class TestPlot:
    @staticmethod
    def points() -> dict[str, Any]:
        return {point["method"]: point for point in literature.data(load())["points"]}

    def test_a_method_stands_at_the_year_of_its_paper_with_the_figure_that_it_prints(self) -> None:
        points = self.points()
        assert (points["MaPLe"]["year"], points["MaPLe"]["h"]) == (2023, 78.55)
        assert (points["CoOp"]["year"], points["CoOp"]["h"]) == (2022, 71.66)  # three sources to one, which has 74.60
        assert (points["CoOp + ATPrompt"]["year"], points["CoOp + ATPrompt"]["h"]) == (2025, 74.65)
        assert "ATPrompt" not in points  # the same figure by another name
        assert [name for name, point in points.items() if point["searched"]] == ["PromptKD"]

    @pytest.mark.slow
    def test_it_is_written(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["literature", "--plot", str(tmp_path / "h.svg"), "--method", "maple", "cocoop"]) == 0
        said = capsys.readouterr().out
        assert said.startswith(
            f"wrote {tmp_path / 'h.svg'}\n\nPrinted figures of base to new classes, ViT-B/16, 16 shots"
        )
        text = (tmp_path / "h.svg").read_text(encoding="utf-8")
        assert "<!-- MaPLe -->" in text and "<!-- CoCoOp -->" in text and "<!-- PromptKD -->" not in text

    @pytest.mark.slow
    def test_no_name_covers_another_or_leaves_the_picture(self) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        with look():
            figure = literature.draw(literature.data(load()))
            renderer = FigureCanvasAgg(figure).get_renderer()
            figure.draw(renderer)
            boxes = {text.get_text(): text.get_window_extent(renderer) for text in figure.axes[0].texts}
        assert len(boxes) == len(self.points())
        for (one, box), (other, beside) in itertools.combinations(boxes.items(), 2):
            assert not box.overlaps(beside), (one, other)
        assert max(box.x1 for box in boxes.values()) <= figure.bbox.x1

    def test_names_are_spread_as_little_as_they_have_to_be(self) -> None:
        """Two that touch move apart by equal parts; a third that they then touch joins them around the mean."""
        assert literature.spread([1.0, 5.0], 1.0) == [1.0, 5.0]
        assert literature.spread([2.0, 2.0], 1.0) == [1.5, 2.5]
        assert literature.spread([2.0, 2.0, 3.2], 1.0) == pytest.approx([1.4, 2.4, 3.4])


@pytest.mark.slow
def test_the_command_loads_nothing_heavy() -> None:
    code = (
        "import sys; from promptbench.cli.main import main; main(['literature', 'coverage', '--method', 'mma']); "
        "print([name for name in ('torch', 'pandas', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
