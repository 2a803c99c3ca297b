"""What users of the field's other libraries expect of a benchmark, and whether they find it here.

Every yes is tried here as a user would, through the command or the public names; a no says why.
"""

from __future__ import annotations

import ast
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from shared_paths import REPOSITORY

import promptbench as pb
from promptbench import registry
from promptbench.cli.main import main

STORED = REPOSITORY / "results" / "mini" / "results" / "base2new" / "mini_fabrics"
QUICK = "run --method zeroshot --dataset mini_fabrics --protocol few_shot --seeds 1"
PLUGIN = '''"""CLIP with the sentence of its dataset, under another name."""

from promptbench.methods.zeroshot import ZeroShot


class Mine(ZeroShot):
    category = "zero-shot"
'''


@dataclass(frozen=True)
class Here:
    """A folder of a user's own, and the command run in it.

    Attributes:
        folder: The working directory.
        capsys: Reads what is printed.
    """

    folder: Path
    capsys: pytest.CaptureFixture[str]

    def says(self, command: str, status: int = 0) -> str:
        """Standard output of `promptbench COMMAND`, which must end with that status."""
        self.capsys.readouterr()
        assert main(shlex.split(command)) == status, self.capsys.readouterr().err
        return self.capsys.readouterr().out

    def stored(self, *methods: str) -> Path:
        """A folder with the committed results of some methods, on one dataset."""
        for method in methods:
            for path in STORED.glob(f"{method}-*.json"):
                target = self.folder / "stored" / "results" / "base2new" / "mini_fabrics" / path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
        return self.folder / "stored"

    def ran(self, more: str = "") -> list[pb.Result]:
        """The results of a small call of `run`, which ends well."""
        self.says(f"{QUICK} --output runs {more}")
        return list(pb.read_results("runs"))


Check = Callable[[Here, pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Expectation:
    """What somebody who comes from another library looks for.

    Attributes:
        what: It, in a few words.
        known_from: Libraries that have it.
        check: Tries it; None where the answer is no.
        why_not: The reason of a no.
        slow: Whether trying takes more than about half a second of CPU.
    """

    what: str
    known_from: str
    check: Check | None
    why_not: str = ""
    slow: bool = False


def frame(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    found = pb.to_frame(pb.read_results(here.stored("coop", "zeroshot")))
    assert isinstance(found, pd.DataFrame) and {"method", "metric", "value", "shots"} <= set(found.columns)
    assert found["value"].notna().all() and len(found) > 20


def one_file(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = {
        "extends": "mini",
        "lineup": ["zeroshot"],
        "seeds": [1],
        "shots": 4,
        "roles": {"base2new": ["mini_neon"]},
    }
    (here.folder / "mine.yaml").write_text(yaml.safe_dump(experiment))
    planned = here.says("run --suite mine.yaml --dry-run list")
    assert "mini_neon" in planned and "zeroshot" in planned and "mini_fabrics" not in planned


def from_python(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    results = pb.run("zeroshot", protocol="few_shot", datasets=["mini_fabrics"], output="runs", progress=False)
    assert "few_shot" in str(pb.table(results)) and results[0].metrics["test/accuracy"] > 50


def filtered(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = here.says("list methods").splitlines()
    assert any("adapter" in line and line.startswith("clip_adapter") for line in listed)
    assert set(registry.names("methods")) == set(pb.list_methods())
    table = here.says(f"table --results {here.stored('coop', 'zeroshot', 'vpt')} --method coop")
    assert "coop" in table.lower() and "vpt" not in table.lower()


def for_programs(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {item["name"] for item in json.loads(here.says("list methods --json"))} == set(registry.names("methods"))
    assert json.loads(here.says("describe coop --json"))["name"] == "coop"


def a_quick_look(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    (limited, *_) = here.ran("--limit 20")
    assert limited.spec.limit == 20 and limited.conditions["images"]["test"] <= 20


def quiet(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main([*shlex.split(QUICK), "--output", "runs", "--quiet", "--log-file", "run.log"]) == 0
    assert here.capsys.readouterr().err == "" and (here.folder / "run.log").exists()


def completion(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit):
        main(["--print-completion", "bash"])
    assert "complete" in (script := here.capsys.readouterr().out) and "--protocol" in script


def to_the_hub(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    hub: dict[str, bytes] = {}

    class Api:
        def create_repo(self, repo_id: str, **options: Any) -> None:
            assert repo_id == "ann/coop"

        def upload_folder(self, folder_path: Path, **options: Any) -> None:
            hub.update({path.name: path.read_bytes() for path in Path(folder_path).iterdir()})

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    here.says(f"export --run {trained(here)} --to hf://ann/coop")
    assert {"README.md", "prompts.safetensors", "result.json"} <= set(hub)


def from_the_hub(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    here.says(f"export --run {trained(here)} -o folder")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: "folder")
    loaded = pb.load("hf://ann/coop")
    assert loaded.result is not None and loaded.result.spec.method == "coop"


def trained(here: Here) -> Path:
    """A result of coop, trained for an epoch on an image a class."""
    call = QUICK.replace("zeroshot", "coop") + " --shots 1 --set coop.epochs=1 --output runs"
    here.says(call)
    (path,) = (here.folder / "runs" / "results" / "few_shot" / "mini_fabrics").glob("coop-*.json")
    return path


def used_again(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    path = trained(here)
    image = REPOSITORY / "results" / "mini" / "contact-sheet.png"
    (seen,) = here.says(f"predict --run {path} --format jsonl {image}").splitlines()
    assert json.loads(seen)


def outside(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_files", {kind: {} for kind in registry._files})
    (here.folder / "mine.py").write_text(PLUGIN)
    assert "mine" in here.says("run --plugin mine.py --method mine --dataset mini_fabrics --dry-run list")


def installed_plugins(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    (here.folder / "mine_outside.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(here.folder))
    entry = metadata.EntryPoint("mine_outside", "mine_outside", "promptbench.methods")
    monkeypatch.setattr(registry, "_entry_points", lambda group: (entry,) if group == entry.group else ())
    assert "mine_outside" in here.says("list methods")


def finished_once(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    (first, *_) = here.ran()
    assert first.path is not None
    before = first.path.stat().st_mtime_ns
    assert "2 finished, 0 to do" in here.says(f"{QUICK} --output runs --dry-run list")
    here.ran()
    assert first.path.stat().st_mtime_ns == before


def interrupted(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    results = here.ran()
    assert results[-1].path is not None
    results[-1].path.unlink()  # as if the call had been killed before it
    assert "2 runs, 1 finished, 1 to do" in here.says(f"{QUICK} --output runs --dry-run list")
    assert len(here.ran()) == len(results)


def cached(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTBENCH_CACHE", str(here.folder / "cache"))
    kept = json.loads(here.says("cache list --format json"))
    assert kept["entries"] == [] and kept["folder"] == str(here.folder / "cache")
    here.says("cache clear")


def seeded(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    said = here.says("run --method coop --dataset mini_fabrics --seeds 1 2 3 --dry-run list")
    assert len(re.findall(r"coop .* [123] ", said)) == 3
    assert "± " in here.says(f"table --results {here.stored('coop', 'zeroshot')}")


def versions(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = here.ran()[0]
    assert stored.versions["promptbench"] == pb.__version__ and stored.versions["torch"]
    assert stored.spec.backbone == "mini" and stored.created


def dry(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "2 runs, 0 finished, 2 to do" in here.says(f"{QUICK} --output runs --dry-run list")
    assert not (here.folder / "runs").exists()


def leaderboard(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = here.stored("coop", "cocoop", "zeroshot")
    ranked = pd.read_csv(io.StringIO(here.says(f"table --results {folder} --sort H --format csv")))
    for _, rows in ranked.groupby("text prior"):
        assert len(rows) > 1 and rows["h"].is_monotonic_decreasing


def formats(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = here.stored("coop", "zeroshot")
    assert r"\begin{tabular" in here.says(f"table --results {folder} --format latex --cite --bib methods.bib")
    assert "@" in (here.folder / "methods.bib").read_text()
    assert len(pd.read_csv(io.StringIO(here.says(f"table --results {folder} --format csv-long")))) > 1
    assert json.loads(here.says(f"table --results {folder} --format json"))
    assert "<table" in here.says(f"table --results {folder} --format html")


def pictures(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    here.says(f"plot base-new --results {here.stored('coop', 'zeroshot')} -o base-new.png")
    assert (here.folder / "base-new.png").read_bytes().startswith(b"\x89PNG")


def one_page(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    here.says(f"report --results {here.stored('coop', 'zeroshot')} -o page.html")
    assert "<html" in (page := (here.folder / "page.html").read_text()) and "http://" not in page.replace(
        "//www.w3", ""
    )


def per_class(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    (first, *_) = here.ran("--save-predictions")
    assert "accuracy" in here.says(f"inspect --run {first.path}")


def significance(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = REPOSITORY / "results" / "mini" / "results" / "base2new"
    assert " p" in here.says(f"table --results {folder} --method coop cocoop --test coop")


def devices(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = here.says(f"{QUICK} --device cpu --precision bf16-mixed --output runs --dry-run list")
    assert "2 runs" in planned
    assert main(shlex.split(f"{QUICK} --device tpu --output runs")) == 2
    assert "tpu" in here.capsys.readouterr().err


def cluster(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    extras = metadata.metadata("promptbench-clip").get_all("Provides-Extra") or []
    assert {"ray", "slurm"} <= set(extras)
    assert "2 runs" in here.says(f"{QUICK} --executor slurm --output runs --dry-run list")


def offline(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a run on the embedded suite asked for the network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    assert here.ran()[0].metrics


def own_images(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = "run --method zeroshot --dataset folder:birds --protocol few_shot --dry-run list"
    from make_fake import make_folder

    make_folder(here.folder / "birds")
    assert "birds" in here.says(shown)


def typed(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pb.__file__ is not None and (Path(pb.__file__).parent / "py.typed").exists()
    assert pb.run.__annotations__["return"] == "list[Result]"


def licensed(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (REPOSITORY / "LICENSE").read_text().startswith("MIT License")
    assert metadata.metadata("promptbench-clip")["License"] == "MIT"


def citable(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    cited = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(cited)


def changes(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.search(r"^## .+\n\n\* ", (REPOSITORY / "CHANGELOG.md").read_text(), flags=re.MULTILINE)


def pages_of_the_api(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """tests/test_docs.py builds them; every public name has something for them."""
    assert all((getattr(pb, name).__doc__ or "").strip() for name in pb.__all__ if name != "__version__")
    assert "\ndocs:" in (REPOSITORY / "Makefile").read_text()


def docker(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """No image is built here: what the file copies is all that the package is made of, and it starts the command."""
    steps = [line.split() for line in (REPOSITORY / "Dockerfile").read_text().splitlines() if line[:1].isupper()]
    copied: set[Path] = set()
    for step in steps:
        if step[0] == "COPY":
            copied.update(map(Path, step[1:-1]))
    assert copied and all((REPOSITORY / path).exists() for path in copied)
    project = (REPOSITORY / "pyproject.toml").read_text()
    table = re.search(r"\[tool.setuptools.package-dir\]\n((?:\".*\n)+)", project)
    assert table is not None
    folders = {Path(line.split('"')[3]) for line in table[1].splitlines()}
    assert folders | {Path("pyproject.toml"), Path("README.md"), Path("LICENSE")} == copied
    assert ["ENTRYPOINT", '["promptbench"]'] in steps
    (without_gpu,) = re.findall(r"`pip (install .*--index-url [^`]+)`", (REPOSITORY / "README.md").read_text())
    assert without_gpu.removeprefix("install ") in (REPOSITORY / "Dockerfile").read_text()


def notebook(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another test runs it; its cells are Python and call the public names."""
    (path,) = (REPOSITORY / "benchmarks").glob("*.ipynb")
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    code = "\n".join("".join(cell["source"]) for cell in cells)
    ast.parse(code)
    assert "import promptbench as pb" in code and "pb.run(" in code


def installed(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    (command,) = (
        entry for entry in metadata.distribution("promptbench-clip").entry_points if entry.name == "promptbench"
    )
    assert command.group == "console_scripts" and callable(command.load())
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    module = [sys.executable, "-m", "promptbench", "--version"]
    done = subprocess.run(module, capture_output=True, text=True, cwd=here.folder, env=environment)
    assert done.stdout == f"promptbench {pb.__version__}\n"


def made_again(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    (first, *_) = here.ran()
    assert "equal" in here.says(f"reproduce {first.path}")


def latest(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    here.ran("--save-predictions")
    monkeypatch.chdir(here.folder)
    (here.folder / "runs").rename("promptbench-runs")
    assert "accuracy" in here.says("inspect --run latest")


def for_a_paper(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    said = here.says(f"table --results {here.stored('coop', 'zeroshot')} --appendix --anonymous")
    assert "lr" in said and str(here.folder) not in said


def explained(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "harmonic mean" in here.says("describe base2new") and "n_ctx" in here.says("describe coop")


EXPECTATIONS = (
    Expectation("results as a DataFrame", "mteb", frame),
    Expectation("one file for a whole experiment", "lm-evaluation-harness", one_file),
    Expectation("everything from Python", "mteb", from_python, slow=True),
    Expectation("list models, with a filter", "timm, open_clip", filtered),
    Expectation("JSON output", "lm-evaluation-harness", for_programs),
    Expectation("--limit for a quick look", "lm-evaluation-harness", a_quick_look, slow=True),
    Expectation("silence, and a log file", "lm-evaluation-harness", quiet, slow=True),
    Expectation("shell completion", "huggingface_hub", completion),
    Expectation("push what was trained to the hub", "timm, open_clip", to_the_hub, slow=True),
    Expectation("load from the hub", "timm, open_clip", from_the_hub, slow=True),
    Expectation("classify images with what was trained", "open_clip", used_again, slow=True),
    Expectation("a plugin in a file", "lm-evaluation-harness (--include_path)", outside),
    Expectation("plugins of installed packages", "mteb", installed_plugins),
    Expectation("what is finished is not done again", "mteb", finished_once, slow=True),
    Expectation("go on after a kill", "lm-evaluation-harness", interrupted, slow=True),
    Expectation("see and clear caches", "lm-evaluation-harness (--use_cache)", cached),
    Expectation("seeds, and their spread", "lm-evaluation-harness", seeded),
    Expectation("versions stored with results", "mteb", versions, slow=True),
    Expectation("see what would run", "mteb", dry),
    Expectation("a leaderboard", "mteb", leaderboard),
    Expectation("tables as LaTeX, CSV, JSON and HTML", "mteb, lm-evaluation-harness", formats),
    Expectation("plots", "mteb", pictures, slow=True),
    Expectation("a page to look at without a network", "mteb", one_page, slow=True),
    Expectation("figures per class", "clip_benchmark", per_class, slow=True),
    Expectation("tests of significance", "lm-evaluation-harness (standard errors)", significance, slow=True),
    Expectation("choose the device and the precision", "lm-evaluation-harness, timm", devices),
    Expectation("many machines", "lm-evaluation-harness (accelerate)", cluster),
    Expectation("work offline", "timm", offline, slow=True),
    Expectation("images of one's own", "timm", own_images),
    Expectation("types for checkers", "mteb", typed),
    Expectation("a license", "all", licensed),
    Expectation("a citation file", "timm, open_clip", citable),
    Expectation("a changelog", "open_clip", changes),
    Expectation("pages of the API", "mteb, timm", pages_of_the_api),
    Expectation("a Dockerfile", "lm-evaluation-harness", docker),
    Expectation("a notebook", "open_clip", notebook),
    Expectation("install with pip, run as a command and as a module", "all", installed),
    Expectation("make a stored result again", "mteb", made_again, slow=True),
    Expectation("name the latest run", "timm (--resume)", latest, slow=True),
    Expectation("an appendix, and blind tables", "none", for_a_paper),
    Expectation("say what a task measures", "mteb, lm-evaluation-harness", explained),
    Expectation(
        "one public leaderboard that takes results of others",
        "mteb",
        None,
        "a server is needed, and somebody who looks after it; results are files, which `results merge` joins",
    ),
    Expectation(
        "any model by its name on the hub",
        "mteb, lm-evaluation-harness",
        None,
        "methods prompt the blocks of open_clip's towers; `list backbones --capabilities` says what works with which",
    ),
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    """An empty folder."""
    monkeypatch.chdir(tmp_path)
    return Here(tmp_path, capsys)


def cases() -> list[Any]:
    """What is there, by its words, the slow ones marked."""
    found = [one for one in EXPECTATIONS if one.check is not None]
    return [pytest.param(one.check, id=one.what, marks=[pytest.mark.slow] if one.slow else []) for one in found]


@pytest.mark.parametrize("check", cases())
def test_a_user_finds(check: Check, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    check(here, monkeypatch)


def test_most_is_there_and_the_rest_has_a_reason() -> None:
    assert len(EXPECTATIONS) >= 30 and len({one.what for one in EXPECTATIONS}) == len(EXPECTATIONS)
    assert sum(one.check is not None for one in EXPECTATIONS) >= 27
    assert all(bool(one.why_not) == (one.check is None) for one in EXPECTATIONS)
