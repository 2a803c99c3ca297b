"""What comes from outside, spoilt: a sentence at worst. The long version is `benchmarks/stress/hostile_inputs.py`."""

from __future__ import annotations

import json
import pickle
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import hostile_inputs
import pytest
import torch
from hostile_inputs import KINDS, Site, Violation, attempt, copy_for_case, hostile, through
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from shared_paths import REPOSITORY
from short_cases import slow_but

from promptbench.cli.main import main
from promptbench.config import UsageError
from promptbench.data.decode import open_image
from promptbench.data.selection import read_coop
from promptbench.training.files import read_training

CASES = 4  # of each kind
SHORT = (
    *("suites", "split files", "class-name files", "result files", "lists of regenerate"),
    *("official checkpoints", "few-shot pickles", "sample files", "exported folders"),
)
"""Kinds of which no case trains or scores images."""
MEASURED = REPOSITORY / "results" / "measured" / "hostile_inputs.json"

LAUGHS = "title: &a0 [x, x, x, x, x, x, x, x, x]" + "".join(
    f"\nk{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * 9) + "]" for n in range(1, 12)
)
NO_SUITES = (
    LAUGHS,
    LAUGHS + "\nroles: {base2new: *a11}\nbackbone: *a11\n",
    "roles: &a {base2new: *a}\ntitle: x\nbackbone: mini\n",
    "title: x\nbackbone: mini\nrecipe: &a {lr: *a}\nroles: {base2new: [mini_shapes]}\n",
    "!!python/object/apply:os.system ['touch executed']\n",
    "title: !!binary aGFsbG8=\nbackbone: 2001-99-99\n",
    "? [a, b]\n: {? {c: d} : e}\n",
    "{" * 3000,
    "- " * 5000,
    "",
    "\t",
    "%YAML 9.9\n---\n",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, tiny_name: str) -> Iterator[Site]:
    """The valid inputs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hostile_inputs, "SIZES_IN_BULK", (10**4, 10**5))
        with hostile_inputs.prepared(tmp_path_factory.mktemp("hostile"), tiny_name) as made:
            yield made


@pytest.mark.parametrize("kind", slow_but(KINDS, *SHORT))
@settings(
    max_examples=CASES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_nothing_worse_than_a_sentence_comes_of_it(site: Site, kind: str, data: st.DataObject) -> None:
    act, same_figures = hostile(data.draw, site, KINDS[kind])
    assert attempt(act, site, same_figures) in ("done", "refused", "failed")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "door"), [(kind, door) for kind in KINDS for door in KINDS[kind].doors])
def test_what_is_not_spoilt_comes_in_through_every_door(site: Site, kind: str, door: hostile_inputs.Door) -> None:
    def outcomes() -> Iterator[str]:
        for path in sorted((site.folder / KINDS[kind].valid).glob(KINDS[kind].files)):
            copied = copy_for_case(site, KINDS[kind])
            path = copied / path.relative_to(site.folder / KINDS[kind].valid)
            yield attempt(through(door, site, path, copied), site, KINDS[kind].same_figures)

    assert "done" in outcomes()  # of one file at least: zero-shot has nothing to export


@pytest.mark.slow
def test_the_watch_sees_what_must_not_happen(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Violation, match="pickle.find_class"):
        attempt(lambda: pickle.loads(hostile_inputs.evil_pickle(site.marker, 0, 4)), site)
    with pytest.raises(Violation, match="code out of the file was run"):
        attempt(lambda: monkeypatch.setattr(hostile_inputs.WATCH, "on", False) or site.marker.touch(), site)
    with pytest.raises(Violation, match="wrote .*elsewhere"):
        attempt(lambda: (tmp_path / "elsewhere").write_text("x"), site)
    with pytest.raises(Violation, match="subprocess.Popen"):
        attempt(lambda: hostile_inputs.subprocess.run(["true"]), site)
    with pytest.raises(Violation, match="KeyError: 'x'"):
        attempt(lambda: {}["x"], site)
    monkeypatch.setattr(hostile_inputs, "SECONDS", 1)
    with pytest.raises(Violation, match="not ended after 1 seconds"):
        attempt(lambda: all(iter(lambda: 1, 0)), site)
    assert attempt(("table", "--results", "nowhere"), site) == "refused"
    assert attempt(lambda: None, site) == "done"


@pytest.mark.parametrize(("most", "said"), [("MOST_MIB", r"it took \d\d MiB"), ("MOST_SECONDS", "and 0.[2-9] seconds")])
def test_what_a_small_file_takes_is_seen(site: Site, most: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def act() -> None:
        began = time.process_time()
        held = b"x" * 2**25
        while time.process_time() < began + 0.2:
            assert held

    hostile_inputs.TAKEN.clear()
    assert attempt(act, site) == "done"
    assert 30 < hostile_inputs.TAKEN["MiB"] < 50 and 0.2 <= hostile_inputs.TAKEN["seconds"] < 2
    monkeypatch.setattr(hostile_inputs, most, 0.1)
    with pytest.raises(Violation, match=said):
        attempt(act, site)


def test_other_figures_are_seen(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    copy_for_case(site, KINDS["images"])
    words = site.words(hostile_inputs.ZEROSHOT, out=site.case / "out")
    assert attempt(words, site, same_figures=True) == "done"
    monkeypatch.setitem(site.metrics, "zeroshot", {})
    with pytest.raises(Violation, match="other figures"):
        attempt(words, site, same_figures=True)


def test_a_pickle_that_would_create_a_file_creates_none(tmp_path: Path) -> None:
    path, marker = tmp_path / "shot_2-seed_1.pkl", tmp_path / "executed"
    for how in range(25):
        for protocol in range(6):
            path.write_bytes(hostile_inputs.evil_pickle(marker, how, protocol))
            with pytest.raises(UsageError, match="no list of images by CoOp"):
                read_coop(path, {"train": []})
            assert not marker.exists()
    for how in range(5):
        pickle.loads(hostile_inputs.evil_pickle(marker, how, 4))
        marker.unlink()  # the pickles do what they are said to do


@pytest.mark.slow
@pytest.mark.parametrize("text", NO_SUITES, ids=range(len(NO_SUITES)))
def test_a_suite_of_aliases_and_depths_is_refused(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert main(["run", "--suite", str(path), "--method", "coop", "--output", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("promptbench: error: ") and "mine.yaml" in line
    assert [found.name for found in tmp_path.iterdir()] == ["mine.yaml"]


def test_regenerate_writes_below_its_list_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    for file in ("../../t.md", str(tmp_path / "t.md"), ".", "x/../../y.md", "a\0b"):
        (folder / "regenerate.yaml").write_text(json.dumps({"tables": [{"file": file, "protocol": "base2new"}]}))
        assert main(["regenerate", str(folder)]) == 2
        assert "must lie in the folder of the list" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["regenerate.yaml"]


@pytest.mark.parametrize(
    "name", ["png 8 bit 7500", "png 8 bit 11000", "png 1 bit 20000", "png 8 bit 60000", "gif 65535"]
)
def test_a_decompression_bomb_is_an_error_with_its_path(tmp_path: Path, name: str) -> None:
    path = tmp_path / "bomb.jpg"
    path.write_bytes(hostile_inputs.bomb(name))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UsageError, match="bomb.jpg.*pixels"):
            open_image(path)


@pytest.mark.slow
def test_the_memory_of_a_bomb_is_that_of_its_head() -> None:
    found = hostile_inputs.try_bomb("png 8 bit 13000")
    assert found["clean"], found  # 169 million pixels would be 500 MiB and more
    assert found["mib"] < 50


@pytest.mark.slow
def test_memory_is_seen_where_an_image_is_opened(tmp_path: Path) -> None:
    Image.new("RGB", (4000, 4000)).save(tmp_path / "large.png")
    found = hostile_inputs.opened(tmp_path / "large.png")
    assert found["said"] == "" and 45 < found["mib"] < 200  # 48 million bytes


def test_an_image_that_another_program_would_draw_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program was started"))
    with pytest.raises(UsageError, match="format EPS"):
        open_image(path)


def test_grey_of_sixteen_bits_is_scaled_as_before(tmp_path: Path) -> None:
    values = torch.arange(0, 65536, 7).to(torch.int32).numpy().reshape(1, -1)
    Image.fromarray(values.astype("uint16")).save(tmp_path / "grey.png")
    read = torch.frombuffer(bytearray(open_image(tmp_path / "grey.png").tobytes()), dtype=torch.uint8)[::3]
    assert torch.equal(read.int(), torch.round(torch.arange(0, 65536, 7).double() / 257).int())


def test_a_flipped_bit_in_a_training_is_noticed(site: Site, tmp_path: Path) -> None:
    (path,) = (site.folder / "runs" / "trainings").glob("*.safetensors")
    held = bytearray(path.read_bytes())
    held[-3] ^= 1
    (tmp_path / "a.safetensors").write_bytes(held)
    with pytest.raises(ValueError, match="not those that were written"):
        read_training(tmp_path / "a.safetensors")
    image = site.folder / "birds" / "owl" / "0.png"
    assert attempt(("predict", "--run", str(tmp_path / "a.safetensors"), str(image)), site) == "refused"


@pytest.mark.slow
def test_the_script_reports_its_cases(
    tmp_path: Path, tiny_name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = {kind: KINDS[kind] for kind in ("lists of regenerate", "official checkpoints")}
    monkeypatch.setattr(hostile_inputs, "KINDS", kinds)
    monkeypatch.setattr(hostile_inputs, "BOMBS", ())
    words = ["--cases", "5", "--seed", "2", "--backbone", tiny_name, "-o", str(tmp_path / "report.json")]
    monkeypatch.setattr(sys, "argv", ["hostile_inputs.py", *words])
    with pytest.raises(SystemExit) as ended:
        hostile_inputs.main()
    found = json.loads((tmp_path / "report.json").read_text())
    assert ended.value.code == 0 and found["violations"] == [] and found["seed"] == 2
    assert [sum(outcomes.values()) for outcomes in found["by kind"].values()] == [2, 3] and found["cases"] == 5
    assert json.loads(capsys.readouterr().out) == found


def test_a_violation_is_reported(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostile_inputs, "hostile", lambda *_: (lambda: {}["x"], False))
    violations: list[dict[str, object]] = []
    outcomes = hostile_inputs.explore_kind(site, "suites", 1, 1, violations)
    assert outcomes == {"violation": 1} and "KeyError: 'x'" in str(violations[0]["what"])


def test_the_committed_figures_are_of_every_kind_and_without_violation() -> None:
    found = json.loads(MEASURED.read_text(encoding="utf-8"))
    assert found["by kind"].keys() == KINDS.keys() and found["cases"] == 500
    assert found["violations"] == [] and all(bomb["clean"] for bomb in found["decompression bombs"].values())
    assert found["largest MiB"].keys() == found["longest seconds"].keys() == KINDS.keys()
    assert max(found["largest MiB"].values()) < 256 and max(found["longest seconds"].values()) < 10
