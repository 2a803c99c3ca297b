"""`promptbench regenerate`: committed tables and plot data follow from the committed results, byte for byte."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from shared_paths import REPOSITORY

from promptbench.cli import main
from promptbench.cli.commands import regenerate
from promptbench.cli.commands.regenerate import items_of, lists_in
from promptbench.metrics.classification import harmonic_mean
from promptbench.results.result import Result, predictions_path, write_result
from promptbench.results.spec import Spec

RESULTS = REPOSITORY / "results"
LIST = """\
tables:
  - {file: base2new.md, protocol: base2new}
  - {file: wide.csv, protocol: base2new, format: csv, method: [maple]}
  - {file: ood.md, protocol: ood}
plots:
  - {file: plots/gain.svg, kind: gain, column: new}
  - {file: plots/ood.svg, kind: ood}
"""
FILES = ("base2new.md", "wide.csv", "plots/gain.json", "plots/gain.svg")


def make(protocol: str, metrics: dict[str, float], **spec: object) -> Result:
    facts = {"suite": "mini", "backbone": "mini", "shots": 16, "threads": 1, "data_seed": 1, "train_seed": 1}
    return Result(
        spec=Spec(protocol=protocol, **{**facts, **spec}),  # type: ignore[arg-type]
        conditions={},
        metrics=metrics,
        versions={},
        commit="",
        created="2026-01-02T03:04:05+00:00",
    )


OOD = make("ood", {"id/accuracy": 90.0, "far/mcm/auroc": 80.0}, dataset="mini_shapes", method="maple")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Results of two methods on two datasets, and a list of what to build."""
    for (method, shots), dataset in itertools.product((("zeroshot", 0), ("maple", 16)), ("mini_neon", "mini_fabrics")):
        metrics = {"base/accuracy": 70.0 + shots, "new/accuracy": 60.0, "h": harmonic_mean(70.0 + shots, 60.0)}
        write_result(tmp_path, make("base2new", metrics, dataset=dataset, method=method, shots=shots))
    (tmp_path / "regenerate.yaml").write_text(LIST, encoding="utf-8")
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], folder: Path, *flags: str) -> tuple[int, dict[str, str]]:
    """The exit code, and the first word or two about each file."""
    code = main.main(["regenerate", str(folder), *flags])
    lines = capsys.readouterr().out.splitlines()
    return code, dict(line.removeprefix(f"{folder}/").partition(".\n")[0].split(": ", 1) for line in lines)


def test_what_is_listed_is_built_and_checks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, first = said(capsys, folder)
    assert code == 0
    assert [first[name] for name in ("base2new.md", "wide.csv", "plots/gain.svg")] == ["written"] * 3
    assert first["ood.md"] == f"skipped. There are no ood results in {folder}."
    assert first["plots/ood.svg"].startswith("skipped. There are no ood results in ")
    assert all((folder / name).exists() for name in FILES) and not (folder / "plots" / "ood.svg").exists()
    before = {name: (folder / name).read_bytes() for name in FILES}
    code, second = said(capsys, folder, "--check")
    assert code == 0
    assert [second[name] for name in ("base2new.md", "wide.csv", "plots/gain.svg")] == ["the same"] * 3
    assert said(capsys, folder)[0] == 0
    assert {name: (folder / name).read_bytes() for name in FILES} == before


def test_a_table_is_what_the_command_prints(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, folder)
    words = ["--results", str(folder), "--protocol", "base2new", "--format", "csv", "--method", "maple"]
    assert main.main(["table", *words]) == 0
    assert (folder / "wide.csv").read_text(encoding="utf-8") == capsys.readouterr().out


@pytest.mark.parametrize("name", ["base2new.md", "plots/gain.json"])
def test_a_changed_file_is_found_and_nothing_is_written(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, folder)
    changed = (folder / name).read_text(encoding="utf-8").replace("6", "7")
    (folder / name).write_text(changed, encoding="utf-8")
    code, outcome = said(capsys, folder, "--check")
    assert code == 1
    assert [file for file, what in outcome.items() if what == "differs"] == [name.replace("json", "svg")]
    assert (folder / name).read_text(encoding="utf-8") == changed


@pytest.mark.slow
def test_what_is_missing_or_has_lost_its_results_differs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, folder)
    (folder / "plots" / "gain.svg").unlink()
    (folder / "ood.md").write_text("made up\n", encoding="utf-8")
    code, outcome = said(capsys, folder, "--check")
    assert (code, outcome["plots/gain.svg"], outcome["ood.md"]) == (1, "differs", "differs")


@pytest.mark.slow
def test_a_new_result_changes_what_is_built(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, folder)
    facts = {"dataset": "mini_neon", "method": "maple", "data_seed": 2, "train_seed": 2}
    write_result(folder, make("base2new", {"base/accuracy": 1.0, "new/accuracy": 1.0, "h": 1.0}, **facts))
    code, outcome = said(capsys, folder, "--check")
    assert code == 1
    assert [outcome[name] for name in ("base2new.md", "wide.csv", "plots/gain.svg")] == ["differs"] * 3


def moved(value: Any, apart: float) -> Any:
    """Plot data with every number moved, as a processor of another make might."""
    if isinstance(value, dict):
        return {key: moved(item, apart) for key, item in value.items()}
    if isinstance(value, list):
        return [moved(item, apart) for item in value]
    return value + apart if isinstance(value, float) else value


@pytest.mark.slow
def test_a_plot_of_predictions_outlives_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import save_file

    write_result(folder, OOD)
    path = predictions_path(folder, OOD.spec)
    path.parent.mkdir(parents=True)
    tensors = {}
    for name in ("id", "far"):
        scores = torch.tensor([0.2, 0.4]) if name == "id" else torch.tensor([0.1, 0.3])
        rest = {"largest": torch.zeros(2), "below": torch.zeros(2, 1).half(), "labels": torch.zeros(2).int()}
        tensors |= {f"{name}/{key}": value for key, value in {**rest, "score.mcm": scores}.items()}
    about = '{"images": [], "class_names": []}'
    save_file(tensors, path, metadata={"id": about, "far": about})
    assert said(capsys, folder)[1]["plots/ood.svg"] == "written"
    picture = (folder / "plots" / "ood.svg").read_bytes()
    data = json.loads((folder / "plots" / "ood.json").read_text())
    for of_a_model, apart, outcome in (
        ((), 1e-5, "differs"),
        (("ood",), 1e-5, "the same"),
        (("ood",), 0.01, "differs"),
    ):
        monkeypatch.setattr(regenerate, "OF_A_MODEL", of_a_model)  # whose numbers are compared to rounding
        (folder / "plots" / "ood.json").write_text(json.dumps(moved(data, apart)), encoding="utf-8")
        assert said(capsys, folder, "--check")[1]["plots/ood.svg"] == outcome
    (folder / "plots" / "ood.json").write_text(json.dumps(data), encoding="utf-8")
    path.unlink()
    code, outcome = said(capsys, folder, "--check")
    assert code == 0 and outcome["plots/ood.svg"].startswith("not checked. There are no predictions")
    (folder / "plots" / "ood.svg").unlink()
    assert said(capsys, folder, "--check") == (1, {**outcome, "plots/ood.svg": "differs"})
    assert said(capsys, folder)[1]["plots/ood.svg"].startswith("drawn from ood.json. There are no predictions")
    assert (folder / "plots" / "ood.svg").read_bytes() == picture


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("- base2new.md\n", "must have lists of mappings under 'tables', 'plots' and 'pages'."),
        ("table: []\n", "regenerate.yaml: Unknown key 'table'. Did you mean 'tables'?"),
        ("tables: [base2new.md]\n", "an entry of 'tables' is a mapping with 'file', not 'base2new.md'."),
        ("tables: [{file: x.md}]\n", "regenerate.yaml, x.md: 'protocol' must name one protocol, not None."),
        (
            "tables: [{file: x.md, protocol: base2new, color: 1}]\n",
            "regenerate.yaml, x.md: There is no --color here",
        ),
        ("plots: [{file: x.png, kind: gian}]\n", "regenerate.yaml, x.png: Unknown kind of plot 'gian'. Did you mean"),
        ("plots: [{file: x.gif, kind: gain}]\n", "its name must end in png, svg, pdf, pgf."),
        ("plots: [\n", "regenerate.yaml cannot be read: "),
    ],
)
def test_mistakes_in_the_list_are_one_sentence(
    text: str, sentence: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "regenerate.yaml").write_text(text, encoding="utf-8")
    assert main.main(["regenerate", str(folder)]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_without_a_list_it_says_where_to_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.main(["regenerate"]) == 2
    assert "There is no regenerate.yaml in results or below it; name a folder" in capsys.readouterr().err


@pytest.mark.slow
def test_the_committed_tables_and_plots_follow_from_the_committed_results(capsys: pytest.CaptureFixture[str]) -> None:
    code = main.main(["regenerate", "--check", str(RESULTS)])
    out = capsys.readouterr().out
    assert code == 0, out
    assert f"{RESULTS / 'mini' / 'base2new.md'}: the same" in out


def test_every_committed_table_and_plot_is_listed() -> None:
    listed = {
        path for found in lists_in([str(RESULTS)]) for item in items_of(found) for path in (item.file, item.stored)
    }
    there = {path for suffix in ("md", "csv", "svg", "json", "png") for path in RESULTS.rglob(f"*.{suffix}")}
    by_scripts = ("bars.json", "contact-sheet.png", "reconstructions.json")
    made_otherwise = {RESULTS / "mini" / name for name in by_scripts}
    others = {"results", "published", "measured", "tuning"}  # runs, papers, speed and memory, trials
    of_runs = {path for path in there if others & set(path.relative_to(RESULTS).parts)}
    assert there - of_runs - made_otherwise - {RESULTS / "README.md"} <= listed


@pytest.mark.slow
def test_a_copy_of_the_committed_results_gives_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "elsewhere"
    shutil.copytree(RESULTS / "mini", folder, ignore=shutil.ignore_patterns("*.md", "*.png", "plots"))
    (folder / "regenerate.yaml").write_text(
        "tables: [{file: base2new.md, protocol: base2new}]\nplots: [{file: plots/gain.png, kind: gain, width: page}]\n"
    )
    assert said(capsys, folder)[0] == 0
    assert (folder / "base2new.md").read_bytes() == (RESULTS / "mini" / "base2new.md").read_bytes()
    committed = RESULTS / "mini" / "plots" / "gain.json"
    assert not committed.exists() or (folder / "plots" / "gain.json").read_bytes() == committed.read_bytes()
