"""What programs and shells read, and how loud commands are."""

from __future__ import annotations

import json
import os
import pydoc
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from shared_paths import REPOSITORY

import promptbench as pb
from promptbench import registry
from promptbench.cli.commands import COMMANDS
from promptbench.cli.main import main
from promptbench.config import UsageError
from promptbench.results.command import command_text
from promptbench.results.result import read_result

MINI = REPOSITORY / "results" / "mini" / "results"
RESULT = min((MINI / "base2new" / "mini_colours").glob("linear_probe-*.json"))
KEYS = {
    "methods": {"name", "summary", "paper", "title", "category", "parameters_vit_b16"},
    "datasets": {"name", "summary", "paper", "title", "classes", "license"},
    "protocols": {"name", "summary", "paper", "role"},
    "scores": {"name", "summary", "paper", "title", "needs"},
    "suites": {"name", "title"},
    "backbones": {"name", "title"},
}


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> object:
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("kind", KEYS)
def test_lists_have_the_documented_keys(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = printed(capsys, "list", kind)
    assert isinstance(found, list) and found and all(set(one) == KEYS[kind] for one in found)
    text = (REPOSITORY / "results" / "README.md").read_text(encoding="utf-8")
    assert all(f"`{key}`" in text for key in KEYS[kind])


@pytest.mark.parametrize("name", ["maple", "dtd", "base2new", "mcm", "mini", "coop@200"])
def test_what_has_a_description_has_it_as_json(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = printed(capsys, "describe", name)
    assert isinstance(found, dict) and found["name"] == name.partition("@")[0] and found["kind"]


def test_a_described_result_has_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    found = printed(capsys, "describe", str(RESULT))
    assert isinstance(found, dict) and found["command"] == command_text(read_result(RESULT))
    assert found["metrics"] == read_result(RESULT).metrics and found["learned"] is None


def test_how_runs_and_data_stand_is_read_by_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results" / "base2new" / "d" / "m-1.failed.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"reason": "it broke."}')
    found = printed(capsys, "status", "--output", str(tmp_path))
    assert isinstance(found, dict) and found["failed"] == {"base2new/d/m-1": "it broke."}
    assert set(found) == {"output", "done", "failed", "running", "to_do", "seconds_left"}
    (state,) = printed(capsys, "data", "status", "dtd")  # type: ignore[misc]
    assert state["name"] == "dtd" and not state["complete"] and state["expected"]["test"] == 1692


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_can_be_quiet(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([name.replace("_", "-"), "--help"])
    said = capsys.readouterr().out
    assert all(said.count(f"  {flag} ") == 1 for flag in ("--quiet", "--verbose", "--log-file"))


def test_what_is_wrong_is_said_in_quiet_and_kept_in_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["status", "--output", str(tmp_path / "gone"), "--log-file", str(tmp_path / "log")]
    for quiet in ([], ["--quiet"]):
        assert main([*words, *quiet]) == 2
        assert capsys.readouterr().err.count("There is no folder") == 1
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 2 and all(line[:2] == "20" and "There is no folder" in line for line in lines)


def test_a_log_file_that_cannot_be_written_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "methods", "--log-file", str(tmp_path / "no" / "log")]) == 2
    assert "--log-file" in capsys.readouterr().err
    assert main(["list", "methods", "--quiet", "--verbose"]) == 2


@pytest.mark.slow
def test_quiet_runs_print_their_table_alone_and_verbose_ones_what_they_write(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "promptbench", "run", "--method", "zeroshot", "--dataset", "mini_fabrics"]
    words += ["--seeds", "1", "--log-file", str(tmp_path / "log"), "--output"]
    said = []
    for flag in ("--quiet", "--verbose"):
        done = subprocess.run([*words, str(tmp_path / flag), flag], capture_output=True, text=True, check=True)
        assert "| Fabrics" in done.stdout and "| Zero-shot CLIP" in done.stdout
        said.append(done.stderr)
    assert not said[0] and "[1/2] base2new, 0 shots: zeroshot" in said[1] and "is done: " in said[1]
    assert (tmp_path / "log").read_text().count("[1/2] base2new, 0 shots: zeroshot") == 2


def test_no_colour_is_drawn_where_none_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    for value in ("", "1"):
        monkeypatch.setenv("NO_COLOR", value)
        console = Console(force_terminal=True, color_system="standard")
        with console.capture() as captured:
            console.print("[red]word[/red]")
        shown.append("\x1b[31m" in captured.get())
    assert shown == [True, False]


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_shells_complete_commands_and_names(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit):
        main(["--print-completion", shell])
    script = capsys.readouterr().out
    assert all(word in script for word in ("check-plugin", "promptsrc", "mini_fabrics", "few_shot", "clip11"))


def test_bash_takes_the_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit):
        main(["--print-completion", "bash"])
    (tmp_path / "script").write_text(capsys.readouterr().out)
    asked = (
        f"source {tmp_path / 'script'}; COMP_WORDS=(promptbench run --method coc); COMP_CWORD=3; "
        '_shtab_promptbench promptbench coc --method; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["cocoop"]


def test_a_missing_package_for_completion_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--print-completion", "bash"]) == 2
    assert "pip install shtab" in capsys.readouterr().err


@pytest.mark.slow
def test_packages_of_plugins_list_them_however_they_were_imported() -> None:
    assert pb.methods() == registry.list_methods() and pb.datasets() == registry.list_datasets()
    code = (
        "import promptbench.methods.coop, promptbench as pb, sys\n"
        "import promptbench.protocols\n"
        "assert 'coop' in pb.methods() and 'base2new' in pb.protocols() and pb.methods.coop.CoOp"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)


@pytest.mark.slow
def test_help_of_the_package_shows_its_names_with_signatures() -> None:
    text = pydoc.render_doc(pb, renderer=pydoc.plaintext)
    for start in (
        "run(methods",
        "to_frame(results",
        "table(results",
        "read_results(*places",
        "load(run",
        "list_methods()",
    ):
        assert f"\n    {start}" in text
    assert "limit: 'int | None' = None" in text and "`methods()`" in text


@pytest.mark.slow
def test_importing_the_package_takes_nothing_heavy() -> None:
    code = "import sys, promptbench; dir(promptbench); sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)


def test_a_limit_is_passed_on_as_the_flag_would_be(monkeypatch: pytest.MonkeyPatch) -> None:
    from promptbench.runs.request import Request

    asked: dict[str, object] = {}

    def of(**given: object) -> None:
        asked.update(given)
        raise UsageError("enough")

    monkeypatch.setattr(Request, "of", of)
    with pytest.raises(UsageError, match="enough"):
        pb.run("coop", limit=5)
    assert asked["limit"] == 5


@pytest.mark.slow
def test_a_method_says_in_three_lines_what_it_is() -> None:
    method = pb.create_method("coop", pb.load_backbone("mini"), ["red", "green", "blue", "grey", "pink"], n_ctx=4)
    first, second, third = repr(method).splitlines()
    assert first.startswith("CoOp(") and "n_ctx=4" in first and "learned parameters on mini" in second
    assert third == "  scores 5 classes: red, green, blue, grey, ..."
