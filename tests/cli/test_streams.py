"""Output that cannot be written ends no run: on stderr it is lost, on stdout the exit code says so in the end."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import make_fake
import pytest
from shared_paths import TINY

import promptbench as pb
from promptbench.cli.main import main

pytestmark = pytest.mark.usefixtures("no_plugins")

FULL = "promptbench: error: standard output cannot be written (No space left on device); what was stored is kept.\n"
PLUGIN = '''"""Speaker: it says what it does.

A. Author, "Speaker", 2026, arXiv:2601.00001.
"""

import logging
import sys
import warnings

from promptbench.method import Method
from promptbench.methods.zeroshot import ZeroShot


class Speaker(ZeroShot):
    def set_classes(self, names):
        print("it speaks", flush=True)
        print("it complains", file=sys.stderr, flush=True)
        sys.stdout.writelines(["a", "b"])
        logging.getLogger("speaker").warning("it logs")
        warnings.warn("it warns")
        sys.stderr.close()
        super().set_classes(names)
'''


class Refusing(io.StringIO):
    """A stream that takes nothing."""

    def __init__(self, code: int, at_once: bool = True) -> None:
        super().__init__()
        self.code, self.at_once = code, at_once

    def write(self, text: str) -> int:
        if self.at_once:
            raise OSError(self.code, os.strerror(self.code))
        return len(text)

    def flush(self) -> None:
        raise OSError(self.code, os.strerror(self.code))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("given")
    make_fake.make_folder(found / "birds")
    (found / "speaker.py").write_text(PLUGIN)
    return found


@pytest.fixture
def call(folder: Path, tmp_path: Path) -> list[str]:
    words = ["run", "--method", "speaker", "--dataset", f"folder:{folder / 'birds'}", "--backbone", TINY]
    words += ["--protocol", "base2new"]
    words += ["--shots", "2", "--threads", "1", "--seeds", "1", "--plugin", str(folder / "speaker.py")]
    return [*words, "--output", str(tmp_path / "runs")]


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(("code", "ends"), [(errno.ENOSPC, 2), (errno.EPIPE, 0), (errno.EIO, 2)])
def test_runs_are_stored_though_nothing_can_be_said(
    call: list[str], code: int, ends: int, at_once: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", Refusing(code, at_once))
    monkeypatch.setattr(sys, "stderr", Refusing(code, at_once))
    assert main(call) == ends
    assert len(pb.read_results(tmp_path / "runs")) == 3 and not list(tmp_path.rglob("*.failed.json"))


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_runs_are_stored_though_a_stream_is_closed(
    call: list[str], stream: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, stream, None)
    assert main(call) == 0
    assert len(pb.read_results(tmp_path / "runs")) == 3 and getattr(sys, stream) is None


def test_what_stdout_does_not_take_is_one_line(
    call: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["list", "methods"], ["--help"], call):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", Refusing(errno.ENOSPC))
            assert main(words) == 2
        assert capsys.readouterr().err.endswith(FULL)


def test_a_script_that_nobody_reads_gets_its_results(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, Refusing(errno.EPIPE))
    what = {"datasets": f"folder:{folder / 'birds'}", "backbone": TINY, "shots": 2, "seeds": [1], "threads": 1}
    what["protocol"] = "base2new"
    found = pb.run("speaker", **what, plugins=folder / "speaker.py", output=tmp_path / "runs")
    assert len(found) == 3


def shell(script: str, folder: Path, unbuffered: bool = False) -> subprocess.CompletedProcess[str]:
    """What a shell does with `promptbench`, by its name."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}
    environment.pop("PYTHONUNBUFFERED", None)
    if unbuffered:
        environment["PYTHONUNBUFFERED"] = "1"
    script = f'promptbench() {{ "$PYTHON" -m promptbench "$@"; }}\n{script}'
    return subprocess.run(["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
@pytest.mark.parametrize("unbuffered", [False, True])
def test_a_process_ends_with_the_code_and_no_other_words(unbuffered: bool, tmp_path: Path) -> None:
    for script, code, said in (
        ("promptbench list methods > /dev/full", 2, FULL),
        ("promptbench --help > /dev/full", 2, FULL),
        ("promptbench --version > /dev/full 2> /dev/full", 2, ""),
        ("promptbench lst 2> /dev/full", 2, ""),
        ("promptbench lst 2>&-", 2, ""),
        ("promptbench list methods >&- 2>&- <&-", 0, ""),
        ("promptbench list methods | true; exit ${PIPESTATUS[0]}", 0, ""),
        ("promptbench --help | head -c 1 > /dev/null; exit ${PIPESTATUS[0]}", 0, ""),
        ("{ promptbench lst 2>&1 >&3; exit $?; } 3>&1 | true; exit ${PIPESTATUS[0]}", 2, ""),
    ):
        done = shell(script, tmp_path, unbuffered)
        assert (script, done.returncode, done.stderr) == (script, code, said)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_sweep_of_workers_goes_on_where_its_progress_cannot_be_written(call: list[str], tmp_path: Path) -> None:
    words = " ".join(f"'{word}'" for word in call)
    done = shell(f"promptbench {words} --jobs 2 > /dev/full 2> /dev/full <&-", tmp_path)
    assert done.returncode == 2 and len(pb.read_results(tmp_path / "runs")) == 3
