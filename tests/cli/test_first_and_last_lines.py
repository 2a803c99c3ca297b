"""What a call of `run` says before anything is done, and, to somebody at a terminal, when all is."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path

import make_fake
import pytest
from shared_paths import REPOSITORY, TINY

from promptbench.cli.main import main, parser

pytestmark = pytest.mark.usefixtures("no_plugins")

ORDERED = '''
import sys
from importlib.abc import MetaPathFinder


class Told(MetaPathFinder):
    """Says that torch is asked for, and ends the call as Ctrl-C would."""

    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("torch is asked for", file=sys.stderr)
            raise KeyboardInterrupt


sys.meta_path.insert(0, Told())
from promptbench.cli.main import main, parser

sys.exit(main(sys.argv[1:]))
'''


def test_what_will_run_is_said_before_torch_is_imported(tmp_path: Path) -> None:
    words = ["run", "--method", "coop", "maple", "--seeds", "1", "2", "--output", "here", "--dry-run"]
    done = subprocess.run([sys.executable, "-c", ORDERED, *words], cwd=tmp_path, capture_output=True, text=True)
    first, second, *_ = done.stderr.splitlines()
    assert first == "base2new on suite mini: zeroshot, zeroshot@generic, coop, maple; seeds 1, 2; results in here"
    assert second == "torch is asked for"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--method", "mapel"], "Unknown method 'mapel'. Did you mean 'maple'?"),
        (["--method", "coop", "--protocol", "base2nwe"], "Unknown protocol 'base2nwe'. Did you mean 'base2new'?"),
    ],
)
def test_a_wrong_name_is_refused_before_torch_is_imported(words: list[str], said: str) -> None:
    done = subprocess.run([sys.executable, "-c", ORDERED, "run", *words], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, f"promptbench: error: {said}\n")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder to call from, and a call whose runs are finished in its usual output folder."""
    folder = tmp_path_factory.mktemp("finished")
    make_fake.make_folder(folder / "birds")
    words = ["run", "--method", "coop", "--protocol", "base2new", "--dataset", f"folder:{folder / 'birds'}"]
    words += ["--backbone", TINY, "--shots", "2", "--threads", "1", "--seeds", "1", "--set", "coop.epochs=1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(words) == 0
    return folder, words


@pytest.mark.parametrize("terminals", [("stdout", "stderr"), ("stderr",), ()])
def test_a_call_at_a_terminal_ends_with_where_results_are_and_commands_that_work(
    finished: tuple[Path, list[str]],
    terminals: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, words = finished
    monkeypatch.chdir(folder)
    for name in terminals:
        monkeypatch.setattr(getattr(sys, name), "isatty", lambda: True)
    assert main(words) == 0
    said = capsys.readouterr().err.splitlines()
    if len(terminals) < 2:
        assert said == []
        return
    place, *commands = said[-4:]
    assert place == "results: promptbench-runs" and said[-5] == ""
    table, report, predict = (line.partition(": ")[2] for line in commands)
    assert table == "promptbench table --sort H" and main(shlex.split(table)[1:]) == 0
    assert report == "promptbench report" and predict == "promptbench predict --run latest PHOTO"


def test_commands_name_the_folder_and_the_protocol_that_are_not_the_usual_ones(
    finished: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, words = finished
    monkeypatch.chdir(folder)
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    assert main(["few_shot" if word == "base2new" else word for word in words] + ["--output", "my runs"]) == 0
    table, _, predict = (line.partition(": ")[2] for line in capsys.readouterr().err.splitlines()[-3:])
    assert main(shlex.split(table)[1:]) == 0 and "### few_shot" in capsys.readouterr().out
    photo = next((folder / "birds").rglob("*.png"))
    assert main(shlex.split(predict.replace("PHOTO", shlex.quote(str(photo))))[1:]) == 0


def test_the_demo_is_the_first_command_of_the_readme() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    first = re.search(r"^    (promptbench .+)$", readme, flags=re.MULTILINE)
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert first is not None and f"\ndemo: $(VENV)/installed\n\t$(BIN)/{first[1]}\n" in makefile


def test_flags_that_say_the_same_are_called_the_same_in_all_commands() -> None:
    commands = next(action for action in parser()._actions if isinstance(action, argparse._SubParsersAction)).choices
    for name, command in commands.items():
        flags = command._option_string_actions
        for one in ("--method", "--dataset"):
            assert flags.get(one) is flags.get(f"{one}s"), f"{name} {one}"
    assert "--results" in commands["status"]._option_string_actions
