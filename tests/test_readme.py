"""Every command and every piece of code in the README works as written."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from promptbench import cli, registry

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = re.findall(r"^    (promptbench .+)$", README, flags=re.MULTILINE)
PLUGIN = next(block for block in BLOCKS if "class CLIPAdapter" in block)
SHORT = ["--seeds", "1", "--dataset", "mini_fabrics", "--set", "clip_adapter.epochs=1"]


def run(command: str, *extra: str) -> int:
    return cli.main([*shlex.split(command)[1:], *extra])


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with what the commands name: the plugin's file and a result to tabulate."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_files", {kind: {} for kind in registry._files})  # forget the plugins of other tests
    (tmp_path / "clip_adapter.py").write_text(PLUGIN, encoding="utf-8")
    return tmp_path


def test_there_is_something_to_test() -> None:
    assert len(COMMANDS) >= 8 and len(BLOCKS) == 2


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.split()[1] == "run"])
def test_a_run_command_of_the_readme_plans_its_runs(
    command: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run(
            command.replace("/data/birds", str(workplace / "birds")),
            *(() if "--dry-run" in command else ("--dry-run",)),
        )
        == 0
    )
    assert "to do" in capsys.readouterr().out


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.split()[1] in ("list", "describe", "show-config")])
def test_a_command_of_the_readme_prints(command: str, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command) == 0
    assert len(capsys.readouterr().out.splitlines()) > 3


def test_the_plugin_of_the_readme_runs_and_its_table_is_printed(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(PLUGIN.splitlines()) < 40
    command = next(c for c in COMMANDS if "clip_adapter.py" in c).replace(" coop ", " ")
    assert run(command, *SHORT) == 0
    assert "clip_adapter" in capsys.readouterr().out
    assert run(next(c for c in COMMANDS if c.startswith("promptbench table"))) == 0
    table = capsys.readouterr().out
    assert r"\toprule" in table and r"clip\_adapter" in table


def test_the_python_of_the_readme_runs() -> None:
    code = next(block for block in BLOCKS if "import promptbench" in block)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "torch.Size([4, 2])\ntorch.Size([4, 3])\n"


def test_the_table_of_the_readme_is_part_of_the_committed_one() -> None:
    committed = (
        (Path(__file__).parents[1] / "results" / "mini" / "base2new.md").read_text(encoding="utf-8").splitlines()
    )
    shown = [line for line in README.splitlines() if line.startswith("|") and "±" in line]
    assert len(shown) > 10 and set(shown) <= set(committed)
