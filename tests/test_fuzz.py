"""What comes from outside, spoilt: a sentence at worst. The long version is `promptbench.benchmarks.fuzz`."""

from __future__ import annotations

import json
import logging
import os
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from promptbench.benchmarks import fuzz, fuzz_images, fuzz_site
from promptbench.benchmarks.fuzz_kinds import KINDS, LAUGHS, YAMLS
from promptbench.benchmarks.fuzz_site import Site

from promptbench.cli import main
from promptbench.config import UsageError
from promptbench.decoding import open_image
from promptbench.samples import read_coop
from promptbench.trainings import read_training

CASES = 3  # of each kind


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, tiny_name: str) -> Iterator[Site]:
    """The valid inputs; what `prepared` changes for good in a process of its own is put back."""
    import promptbench.bench
    import promptbench.trained

    loads = promptbench.bench.load_backbone, promptbench.trained.load_backbone
    before, cwd = dict(os.environ), os.getcwd()
    yield fuzz.prepared(tmp_path_factory.mktemp("fuzz"), tiny_name)
    promptbench.bench.load_backbone, promptbench.trained.load_backbone = loads
    logging.captureWarnings(False)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(before)
    torch.set_num_threads(1)


@pytest.mark.parametrize("kind", list(KINDS))
def test_nothing_worse_than_a_sentence_comes_of_it(site: Site, kind: str) -> None:
    (tally,) = fuzz.explore(site, [kind], CASES, seed=7).values()
    assert tally.cases == CASES
    assert not tally.violations


def attempt(site: Site, work: Path, act: Any) -> str:
    work.mkdir(exist_ok=True)
    return fuzz.attempt(act, site, work)


def test_the_watch_sees_what_must_not_happen(site: Site, tmp_path: Path) -> None:
    work = site.folder / "case"
    marker = work / "executed"

    def bad() -> None:
        pickle.loads(fuzz_site.evil_pickle(marker, 0, 4))

    with pytest.raises(fuzz.Violation, match="pickle.find_class"):
        attempt(site, work, bad)
    marker.unlink()
    with pytest.raises(fuzz.Violation, match="wrote .*elsewhere"):
        attempt(site, work, lambda: (tmp_path / "elsewhere").write_text("x"))
    with pytest.raises(fuzz.Violation, match="KeyError: 'x'"):
        attempt(site, work, lambda: {}["x"])
    assert attempt(site, work, ("table", "--results", "nowhere")) == "refused"


def test_a_pickle_that_would_create_a_file_creates_none(site: Site, tmp_path: Path) -> None:
    path, marker = tmp_path / "shot_2-seed_1.pkl", tmp_path / "executed"
    for how in range(25):
        for protocol in range(6):
            path.write_bytes(fuzz_site.evil_pickle(marker, how, protocol))
            with pytest.raises(UsageError, match="no list of images by CoOp"):
                read_coop(path, {"train": []})
            assert not marker.exists()
    pickle.loads(fuzz_site.evil_pickle(marker, 0, 4))
    assert marker.exists()  # the pickles do what they are said to do


@pytest.mark.parametrize("text", [LAUGHS, *YAMLS[1:]], ids=range(len(YAMLS)))
def test_a_suite_of_aliases_and_depths_is_refused(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert main(["run", "--suite", str(path), "--method", "coop", "--output", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("promptbench: error: ") and "mine.yaml" in line


def test_regenerate_writes_below_its_list_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    for file in ("../../t.md", str(tmp_path / "t.md"), ".", "x/../../y.md", "a\0b"):
        (folder / "regenerate.yaml").write_text(json.dumps({"tables": [{"file": file, "protocol": "base2new"}]}))
        assert main(["regenerate", str(folder)]) == 2
        assert "must lie in the folder of the list" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["regenerate.yaml"]


@pytest.mark.parametrize("name", ["png 8 bit 11000", "png 1 bit 20000", "png 8 bit 60000", "gif 65535"])
def test_a_decompression_bomb_is_an_error_with_its_path(tmp_path: Path, name: str) -> None:
    path = tmp_path / "bomb.jpg"
    path.write_bytes(fuzz_images.bomb(name))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UsageError, match="bomb.jpg.*pixels"):
            open_image(path)


def test_the_memory_of_a_bomb_is_that_of_its_head() -> None:
    (found,) = fuzz.open_bombs(["png 8 bit 13000"]).values()
    assert found["clean"], found  # 169 million pixels would be 500 MiB and more
    assert found["mib"] < 50


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
    assert attempt(site, site.folder / "case", ("predict", "--run", str(tmp_path / "a.safetensors"), str(image))) == (
        "refused"
    )
