"""Every command and every piece of code in the README, and in those of its folders, works as written."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import make_fake
import pytest
from PIL import Image
from shared_paths import REPOSITORY

from promptbench import registry
from promptbench.cli import main
from promptbench.results.result import read_results

FOLDERS = ("methods", "datasets", "benchmarks", "results")
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PAGES = {name: (REPOSITORY / name / "README.md").read_text(encoding="utf-8") for name in FOLDERS} | {"": README}
TEXT = "\n".join(PAGES.values())
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
SUITES = re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)
COMMANDS = list(dict.fromkeys(re.findall(r"^    (promptbench .+)$", TEXT, flags=re.MULTILINE)))
INLINE = list(dict.fromkeys(" ".join(one.split()) for one in re.findall(r"`(promptbench\s[a-z][^`]*)`", TEXT)))
PLUGIN = next(block for block in BLOCKS if "class TextAdapter" in block)
SHORT = ["--seeds", "1", "--dataset", "mini_fabrics", "--set", "text_adapter.epochs=1"]


def run(command: str, *extra: str) -> int:
    return main.main([*shlex.split(command)[1:], *extra])


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with what the commands name: the plugin's file and a result to tabulate."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_files", {kind: {} for kind in registry._files})  # forget the plugins of other tests
    (tmp_path / "text_adapter.py").write_text(PLUGIN, encoding="utf-8")
    (tmp_path / "birds.py").write_text(next(block for block in BLOCKS if "class Birds" in block), encoding="utf-8")
    (tmp_path / "birds.yaml").write_text(SUITES[0].replace("/data", str(tmp_path)), encoding="utf-8")
    fewer = shutil.ignore_patterns("few_shot", "cross_dataset", "domain_generalization", "mini_co*")  # soon drawn
    shutil.copytree(
        REPOSITORY / "results" / "mini" / "results", tmp_path / "promptbench-runs" / "results", ignore=fewer
    )
    return tmp_path


def test_there_is_something_to_test() -> None:
    assert len(COMMANDS) >= 12 and len(INLINE) >= 8 and len(BLOCKS) == 5


def test_the_first_page_stays_short() -> None:
    assert len(README.encode()) <= 9000


@pytest.mark.parametrize("folder", PAGES)
def test_what_a_page_links_to_is_there(folder: str) -> None:
    targets = re.findall(r"\]\(([^)#]+)", PAGES[folder])
    assert targets and all((REPOSITORY / folder / target).exists() for target in targets)


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if c.split()[1] == "run"])
def test_a_run_command_of_the_readme_plans_its_runs(
    command: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = command.removesuffix("--dry-run").replace("/data/birds", str(workplace / "birds"))
    assert run(listed, "--dry-run", "list") == 0
    assert "runs," in capsys.readouterr().out


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.split()[1] in ("list", "describe", "show-config")])
def test_a_command_of_the_readme_prints(command: str, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command) == 0
    assert len(capsys.readouterr().out.splitlines()) > 3


@pytest.mark.parametrize(
    "command",
    [
        *(c for c in COMMANDS if c.split()[1] in ("table", "plot", "data", "evidence", "literature", "results")),
        *(pytest.param(c, marks=pytest.mark.slow) for c in COMMANDS if c.split()[1] == "report"),
    ],
)
def test_a_command_of_the_readme_makes_something_of_results_or_data(
    command: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command.replace("/data", str(workplace))) == 0
    assert capsys.readouterr().out.strip()
    if "-o" in command.split():
        assert (workplace / command.split()[-1]).stat().st_size > 1000


@pytest.mark.slow
def test_the_check_of_the_readme_passes_its_plugin(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(next(c for c in COMMANDS if "check-plugin" in c)) == 0
    assert "FAIL" not in capsys.readouterr().out


@pytest.mark.slow
def test_the_sheet_of_the_suite_is_drawn(workplace: Path) -> None:
    command = next(c for c in COMMANDS if c.split()[1] == "mini")
    assert run(command) == 0 and (workplace / command.split()[-1]).stat().st_size > 1000


@pytest.mark.slow
def test_the_tuning_tries_its_points(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = next(c for c in COMMANDS if c.split()[1] == "tune").replace(
        "0.1,0.3 epochs=50,100 --jobs 2", "0.1 epochs=1"
    )
    assert run(command, "--seeds", "1", "--dataset", "mini_fabrics") == 0
    assert (workplace / command.split()[-1]).exists() and "best: lr: 0.1, epochs: 1" in capsys.readouterr().out


def test_every_command_is_run_here() -> None:
    shown = {"list", "describe", "show-config", "table", "plot", "report", "evidence", "literature", "results"}
    known = {"run", "data", "check-plugin", "mini", "tune"} | shown
    assert {command.split()[1] for command in COMMANDS} == known


@pytest.mark.parametrize("command", INLINE)
def test_a_command_within_a_sentence_exists_with_its_flags(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for word in shlex.split(command)[1:] if word != "..."]
    with pytest.raises(SystemExit):
        main.main([words[0], *words[1:2] * (words[0] in ("data", "results", "mini", "cache")), "--help"])
    text = capsys.readouterr().out
    assert all(word in text for word in words if word.startswith("-"))


@pytest.mark.slow
def test_the_experiment_in_one_file_runs(workplace: Path, tiny_name: str, capsys: pytest.CaptureFixture[str]) -> None:
    make_fake.make_folder(workplace / "birds")
    command = next(c for c in COMMANDS if "birds.yaml" in c)
    fewer = ("--seeds", "1", "--backbone", tiny_name, "--threads", "1", "--set", "epochs=1", "tip_adapter.views=1")
    assert run(command, *fewer, "--output", "bird-runs") == 0
    results = read_results("bird-runs")
    labels = {result.spec.label for result in results}
    assert labels == {"zeroshot@generic", "zeroshot", "coop", "tip_adapter"}
    assert {result.spec.shots for result in results if result.spec.method == "coop"} == {4, 8}
    assert "photographs of one garden" in capsys.readouterr().out


@pytest.mark.slow
def test_the_plugin_of_the_readme_runs_and_its_table_is_printed(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(PLUGIN.splitlines()) < 40
    command = next(c for c in COMMANDS if "text_adapter.py" in c).replace(" coop ", " ")
    assert run(command, *SHORT) == 0
    assert "| Text adapter" in capsys.readouterr().out
    assert run(next(c for c in COMMANDS if c.startswith("promptbench table"))) == 0
    table = capsys.readouterr().out
    assert r"\toprule" in table and "Text adapter" in table


@pytest.mark.slow
def test_a_trained_prompt_is_exported_loaded_and_used_as_the_readme_says(workplace: Path) -> None:
    call = ["run", "--method", "coop", "--dataset", "mini_fabrics", "--seeds", "1", "--set", "coop.epochs=1"]
    assert main.main([*call, "--output", "here"]) == 0
    (result,) = (workplace / "here").rglob("coop-*.json")
    export = next(command for command in INLINE if command.split()[1] == "export")
    assert run(export.replace("RESULT", str(result))) == 0
    Image.new("RGB", (60, 40), "red").save(workplace / "photo.jpg")
    exec(next(block for block in BLOCKS if 'pb.load("coop-dtd")' in block), {})
    predict = next(command for command in INLINE if command.split()[1] == "predict")
    assert run(predict.replace("latest", str(result)).replace("folder/", "photo.jpg")) == 0


@pytest.mark.slow
def test_the_runs_of_the_readme_are_done_from_python(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found: dict[str, Any] = {}
    exec(next(block for block in BLOCKS if "pb.run" in block), found)
    assert "| Fabrics | Zero-shot CLIP" in capsys.readouterr().out
    assert len(list((workplace / "runs" / "results").rglob("coop-*.json"))) == 2
    assert set(found["frame"].label) == {"zeroshot", "zeroshot@generic", "coop"} and found["one"].spec.method == "coop"


def test_the_python_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    exec(next(block for block in BLOCKS if "create_method" in block), {})
    assert capsys.readouterr().out == "torch.Size([4, 2])\ntorch.Size([4, 3])\n"


def test_the_table_of_the_readme_is_part_of_the_committed_one() -> None:
    committed = (REPOSITORY / "results" / "mini" / "base2new.md").read_text(encoding="utf-8").splitlines()
    first = README.index("| dataset ")
    shown = README[first:].partition("\n\n")[0].splitlines()
    assert len(shown) == 6 and set(shown) <= set(committed)


def test_the_dataset_of_the_readme_reads_a_split_file(workplace: Path, tiny_name: str) -> None:
    rows = {
        split: [[f"{split}/{n}.png", n % 2, ("jay", "wren")[n % 2]] for n in range(4)] for split in ("train", "test")
    }
    for split in rows.values():
        for path, *_ in split:
            (workplace / "cub" / "images" / path).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 20), "blue").save(workplace / "cub" / "images" / path)
    (workplace / "cub" / "split.json").write_text(json.dumps(rows), encoding="utf-8")
    command = next(c for c in COMMANDS if "birds.py" in c).replace("/data", str(workplace)).replace(" coop", "")
    assert run(command, "--seeds", "1", "--output", "bird-runs", "--backbone", tiny_name) == 0
    (result,) = (workplace / "bird-runs").rglob("zeroshot-*.json")
    assert json.loads(result.read_text())["spec"]["templates"]["base"] == "a photo of a {}, a type of bird."
