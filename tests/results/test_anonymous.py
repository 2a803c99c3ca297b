"""Results for a blind review: nothing of who made them where is in a file, a table or a page, and every figure is."""

from __future__ import annotations

import getpass
import json
import re
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from promptbench.cli import main
from promptbench.results.anonymous import anonymous
from promptbench.results.result import Result, Spec, read_results, write_result

COMMIT = "daaac5db5f357533fa724810dbc6053c2381a238"
HOST, USER, HOME = "gpu-node17.uni-example.edu", "amira", "/home/amira"


def make(seed: int = 1, method: str = "coop") -> Result:
    spec = Spec(
        suite="mini",
        protocol="base2new",
        dataset="birds",
        method=method,
        config={"n_ctx": 4, "ctx_init": "a photo of a"},
        recipe={"epochs": 5, "lr": 0.002, "batch": 32, "origin": "ours"},
        shots=16,
        data_seed=seed,
        train_seed=seed,
        backbone=f"ViT-B-16-quickgelu:{HOME}/weights/clip.safetensors",
        threads=1,
        dataset_options={"root": f"{HOME}/data/birds", "template": "a photo of a {}, a bird."},
        scores={"neglabel": {"words": f"file:{HOME}/words.txt"}},
    )
    return Result(
        spec=spec,
        conditions={
            "provenance": {
                "config.n_ctx": f"suite {HOME}/my.yaml",
                "recipe.lr": "paper, table 3/4; see https://arxiv.org/abs/1",
            },
            "skipped": {"base": [f"{HOME}/data/birds/a.jpg"]},
            "images": {"base": 10, "new": 10},
        },
        metrics={"base/accuracy": 80.0 + seed, "new/accuracy": 70.0, "h": 74.7},
        notes={"joint/accuracy": f"stopped on {HOST}: {HOME}/data/birds is not there"},
        versions={"torch": "2.4.1+cu121"},
        commit=COMMIT,
        created="2026-11-29T04:25:20+00:00",
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(socket, "gethostname", lambda: HOST)
    monkeypatch.setattr(getpass, "getuser", lambda: USER)
    monkeypatch.setenv("HOME", HOME)
    for method in ("coop", "maple"):
        for seed in (1, 2):
            write_result(tmp_path / "runs", make(seed, method))
    return tmp_path


def traces(text: str) -> list[str]:
    """What of the makers stands in a text."""
    found = [word for word in (HOST, "gpu-node17", USER, HOME, "/home", COMMIT, COMMIT[:10]) if word in text]
    return found + re.findall(r"04:25:20", text)


def test_files_are_copied_without_a_trace_and_with_every_figure(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert traces("".join(path.read_text(encoding="utf-8") for path in folder.rglob("*.json")))  # there are some
    assert main.main(["results", "anonymise", str(folder / "runs"), "-o", str(folder / "blind")]) == 0
    assert "wrote 4 results" in capsys.readouterr().out
    for path in (folder / "blind").rglob("*.json"):
        assert traces(path.read_text(encoding="utf-8") + str(path.relative_to(folder))) == []
    before, after = read_results(folder / "runs"), read_results(folder / "blind")
    assert sorted(str(one.metrics) for one in before) == sorted(str(one.metrics) for one in after)
    one = after[0]
    assert one.spec.backbone == "ViT-B-16-quickgelu:clip.safetensors" and one.spec.dataset_options["root"] == "birds"
    assert one.spec.dataset_options["template"] == "a photo of a {}, a bird."
    assert one.conditions["provenance"] == {
        "config.n_ctx": "suite my.yaml",
        "recipe.lr": "paper, table 3/4; see https://arxiv.org/abs/1",
    }
    assert one.versions == {"torch": "2.4.1+cu121"} and one.created == "2026-11-29T00:00:00+00:00"


def test_what_names_no_maker_stays_as_it_is() -> None:
    plain = replace(make(), spec=replace(make().spec, backbone="mini", dataset_options={}, scores={}))
    kept = replace(
        plain, conditions={"images": {"base": 10}, "transform": {"training": "resize-pil+center-crop/1"}}, notes={}
    )
    assert anonymous(kept).spec == kept.spec and anonymous(kept).conditions == kept.conditions


@pytest.mark.parametrize("fmt", ["md", "csv", "csv-long", "latex", "html", "json"])
def test_tables_say_nothing_of_the_makers(fmt: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["table", "--results", str(folder / "runs"), "--format", fmt, "--cost", "--appendix"]
    assert main.main([*call, "--anonymous"]) == 0
    assert traces(capsys.readouterr().out) == []


def test_the_page_says_nothing_of_the_makers(folder: Path) -> None:
    page = folder / "page.html"
    assert main.main(["report", "--results", str(folder / "runs"), "-o", str(page)]) == 0
    assert traces(page.read_text(encoding="utf-8"))
    assert main.main(["report", "--results", str(folder / "runs"), "-o", str(page), "--anonymous"]) == 0
    assert traces(page.read_text(encoding="utf-8")) == []


def test_a_folder_without_results_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert main.main(["results", "anonymise", str(tmp_path / "empty"), "-o", str(tmp_path / "out")]) == 2
    assert "There are no results in" in capsys.readouterr().err


def test_json_of_an_anonymous_table_still_leads_to_its_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["results", "anonymise", str(folder / "runs"), "-o", str(folder / "blind")]) == 0
    capsys.readouterr()
    assert main.main(["table", "--results", str(folder / "runs"), "--format", "json", "--anonymous"]) == 0
    (table,) = json.loads(capsys.readouterr().out)["tables"]
    for name in table["runs"]:
        assert (folder / "blind" / "results" / f"{name}.json").is_file()
