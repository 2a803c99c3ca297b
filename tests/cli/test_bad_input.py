"""What a user can get wrong: one line that names culprit, place and way out; exit code 2; nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import make_fake
import pytest
import torch
from shared_paths import REPOSITORY, TINY

from promptbench import registry
from promptbench.cli.flags import grid_of
from promptbench.cli.main import main, parser
from promptbench.clip.load import load_backbone

RUN = ("run", "--backbone", TINY, "--threads", "1", "--shots", "2", "--seeds", "1")
BIRDS = ("--dataset", "folder:birds")
COOP = (*RUN, *BIRDS, "--method", "coop", "--set", "coop.epochs=1", "coop.batch=4")
CLIP11 = (*RUN, "--method", "zeroshot", "--suite", "clip11", "--dataset")

Said = Callable[..., str]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current directory with a folder of images, birds, and without plugins of other tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_files", {kind: {} for kind in ("methods", "datasets", "protocols")})
    make_fake.make_folder(tmp_path / "birds")
    yield tmp_path
    torch.set_num_threads(1)


@pytest.fixture
def refused(here: Path, capsys: pytest.CaptureFixture[str]) -> Said:
    """Runs a command that must be refused, and returns what is said of it."""

    def call(*words: str) -> str:
        before = tree(here)
        code = main(list(words))
        captured = capsys.readouterr()
        lines = captured.err.splitlines()
        assert (code, captured.out, len(lines)) == (2, "", 1), captured
        assert lines[0].startswith("promptbench: error: ") and "Traceback" not in captured.err
        assert tree(here) == before
        return lines[0].removeprefix("promptbench: error: ")

    return call


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder, empty folders too."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("words", "flag", "meant"),
    [
        (("run", "--metod", "coop"), "--metod", "--method"),
        (
            (
                "table",
                "--dlta=coop",
            ),
            "--dlta",
            "--delta",
        ),
        (("data", "check", "dtd", "--deeep"), "--deeep", "--deep"),
    ],
)
def test_a_flag_that_is_none_gets_the_nearest_one(words: tuple[str, ...], flag: str, meant: str, refused: Said) -> None:
    said = refused(*words)
    assert said.startswith(f"There is no {flag} here") and said.endswith(f"Did you mean '{meant}'?")


def test_a_training_on_one_class_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classes = sorted(path for path in (here / "birds").iterdir() if path.is_dir())
    for name, images in zip(("cat", "dog"), classes, strict=False):
        shutil.copytree(images, here / "pets" / name)
    words = [*RUN, "--dataset", "folder:pets", "--method", "coop", "--set", "coop.epochs=1", "coop.batch=2"]
    assert main([*words, "--protocol", "base2new"]) == 2
    said = capsys.readouterr().err
    assert "'pets' has 2 classes, of which base2new trains on 'cat' alone; take a --protocol that trains on all" in said
    assert main([*words, "--protocol", "few_shot"]) == 0


def test_the_beginning_of_a_flag_is_none(refused: Said) -> None:
    assert "There is no --runs here" in refused(*RUN, "--method", "coop", "--runs", "2")


@pytest.mark.parametrize("value", ["often", "-1", "nan", "inf"])
@pytest.mark.parametrize(
    ("name", "takes"), [("PROMPTBENCH_PARTIAL_SECONDS", "seconds"), ("PROMPTBENCH_CACHE_GB", "gigabytes")]
)
def test_a_wrong_environment_is_told_before_anything_is_trained(
    name: str, takes: str, value: str, refused: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert refused(*COOP) == f"{name} takes a number of {takes} from 0 on, not {value!r}."


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("rnu",), "Unknown command 'rnu'. Did you mean 'run'?"),
        (("run",), "--method"),
        (("run", "--method", "coop", "--sedes", "1"), "--sedes"),
        (("list", "method"), "Unknown kind 'method'. Did you mean 'methods'?"),
        (
            ("describe", "mapel"),
            "Unknown method, dataset, protocol, score, suite, metric or column 'mapel'. Did you mean 'maple'?",
        ),
        (("describe", "coop@20"), "Unknown preset of coop '20'. Did you mean '200'?"),
        (("run", "--method", "mapel"), "Unknown method 'mapel'. Did you mean 'maple'?"),
        (("run", "--method", "coop@20"), "Unknown preset of coop '20'. Did you mean '200'?"),
        (("run", "--method", "@200"), "'@200' is no method"),
        ((*RUN, "--method", "coop", "--dataset", "dtdd"), "Unknown dataset 'dtdd'. Did you mean 'dtd'?"),
        ((*RUN, "--method", "coop", "--protocol", "base2nwe"), "Unknown protocol 'base2nwe'. Did you mean 'base2new'?"),
        (("run", "--method", "coop", "--suite", "mnii"), "Unknown suite 'mnii'. Did you mean 'mini'?"),
        (("run", "--method", "coop", "--suite", "none.yaml"), "none.yaml: the suite cannot be read (No such file"),
        (("run", "--method", "coop", "--backbone", "min"), "'min' names no weights"),
        (("run", "--method", "coop", "--backbone", "ViT-B-61:openai"), "no architecture 'ViT-B-61'. Did you mean"),
        ((*COOP, "coop.n_cxt=4"), "Unknown setting of coop 'n_cxt'. Did you mean 'n_ctx'?"),
        ((*COOP, "cop.n_ctx=4"), "Unknown method or dataset of this call 'cop'. Did you mean 'coop'?"),
        ((*COOP, "maple.depth=2"), "Unknown method or dataset of this call 'maple'"),
        ((*COOP, "birds.rot=x"), "Unknown key 'rot'. Did you mean 'root'?"),
        ((*COOP, "coop.n_ctx"), "'coop.n_ctx' is no assignment; write method.field=value"),
        ((*COOP, ".n_ctx=4"), "is no assignment; write method.field=value, for instance coop.n_ctx=4"),
        (
            (*COOP, "epoch=4"),
            "--set epoch=…: Unknown setting of the methods of this call 'epoch'. Did you mean 'epochs'?",
        ),
        ((*COOP, "*.a.b=4"), "write method.field=value, for instance coop.n_ctx=4"),
        ((*COOP, "--limit", "0"), "takes integers from 1 on, not '0'"),
        ((*COOP, "coop.n_ctx=four"), "'n_ctx' takes an integer or none, not 'four'"),
        ((*COOP, "coop.csc=1"), "'csc' takes true or false, not 1"),
        ((*COOP, "coop.class_token_position=start"), "takes one of end, middle, front, not 'start'"),
        ((*COOP, "coop.lr=fast"), "'lr' takes a number, not 'fast'"),
        ((*COOP, "coop.lr=-1"), "'lr' must be more than 0, not -1"),
        ((*COOP, "coop.epochs=0"), "'epochs' must be at least 1, not 0"),
        ((*COOP, "coop.ctx_init=", "coop.n_ctx=-2"), "'n_ctx' takes an integer of at least 1, not -2"),
        ((*COOP, "coop.n_ctx=7"), "n_ctx is 7, but ctx_init 'a photo of a' has 4 words"),
        ((*COOP, "coop.n_ctx=7", "coop.ctx_init=dataset"), "n_ctx is 7, but the dataset's template 'a photo of a {}.'"),
        ((*COOP, "coop.ctx_init=dataset", "birds.template={} x."), "The template '{} x.' has no word before the class"),
        ((*COOP, "coop.ctx_init=dataset", "coop.class_token_position=front"), "front puts the name elsewhere than"),
        ((*RUN, *BIRDS, "--method", "maple", "--set", "maple.depth=9"), "depth is 9, but text_depth of backbone"),
        ((*RUN, *BIRDS, "--method", "maple", "--set", "maple.depth=0"), "'depth' takes an integer of at least 1"),
        ((*COOP, "--seeds", "1", "-1"), "--seeds: takes integers from 0 on, not '-1'"),
        ((*COOP, "--seeds", "one"), "--seeds: takes integers from 0 on, not 'one'"),
        ((*RUN, *BIRDS, "--method", "coop", "--seeds", "2", "2"), "--seeds takes different integers, not 1 2 2"),
        ((*COOP, "--data-seed", "-3"), "--data-seed: takes integers from 0 on"),
        ((*COOP, "--shots", "0"), "--shots: takes integers from 1 on, not '0'"),
        ((*COOP, "--threads", "0"), "--threads: takes integers from 1 on"),
        ((*COOP, "--device", "tpu"), "--device takes cpu, cuda, cuda:N or auto, not 'tpu'"),
        ((*COOP, "--plugin", "mine.py"), "There is no plugin file"),
        (("table",), "There are no results at"),
        (("table", "--format", "htm"), "Unknown format 'htm'. Did you mean 'html'?"),
        (("table", "--protocol", "base"), "Unknown protocol 'base'"),
        (("table", "--results", "birds"), "There are no base2new results in birds"),
    ],
)
def test_what_is_typed(refused: Said, words: tuple[str, ...], says: str) -> None:
    assert says in refused(*words)


LONG = "x" * 300
HUGE = "99999999999999999999"
ZEROSHOT = (*RUN, *BIRDS, "--method", "zeroshot")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((*ZEROSHOT, "--seeds", HUGE), "--seeds: takes integers up to 9223372036854775807, not '99999"),
        ((*ZEROSHOT, "--seeds", HUGE * 500), "--seeds: takes integers"),
        ((*ZEROSHOT, "--data-seed", HUGE), "--data-seed: takes integers up to"),
        ((*ZEROSHOT, "--train-seed", HUGE), "--train-seed: takes integers up to"),
        ((*COOP, "--shots", HUGE), "--shots: takes integers up to"),
        ((*ZEROSHOT, "--threads", HUGE), "--threads: takes integers up to"),
        ((*ZEROSHOT, "--threads", "100000"), "'threads' must be at most 1024, not 100000"),
        ((*ZEROSHOT, "--jobs", HUGE), "--jobs: takes integers up to"),
        ((*ZEROSHOT, "--runs-per-gpu", HUGE), "--runs-per-gpu: takes integers up to"),
        ((*COOP, "--train-views", HUGE), "--train-views: takes integers up to"),
        ((*COOP, f"coop.epochs={HUGE}"), "'epochs' takes an integer, not 999"),
        ((*COOP, f"coop.epochs={HUGE}"), "(it is beyond 64 bits)"),
        ((*COOP, f"coop.batch={HUGE}"), "(it is beyond 64 bits)"),
        ((*COOP, "coop.ctx_init=", f"coop.n_ctx={HUGE}"), "'n_ctx' takes an integer or none, not 999"),
        ((*COOP, "coop.ctx_init=", "coop.n_ctx=1000000000000"), "coop: what it learns does not fit into memory"),
        ((*COOP, "coop.ctx_init=", "coop.n_ctx=4611686018427387904"), "does not fit into memory"),
        ((*COOP, "--grid", f"coop.n_ctx={HUGE}"), "'n_ctx' takes an integer or none"),
        ((*COOP, "--grid", "coop.ctx_init=a {},"), "--grid coop.ctx_init=a {},: write method.field=value,value"),
        ((*COOP, "coop.lr=1e400"), "'lr' takes a number, not '1e400' (it is not finite)"),
        ((*COOP, "coop.lr=.nan"), "'lr' takes a number, not nan (it is not finite)"),
        ((*ZEROSHOT, "--set", "zeroshot.template={"), "The template '{' must hold {} exactly once"),
        ((*ZEROSHOT, "--set", "zeroshot.template=a photo"), "The template 'a photo' must hold {} exactly once"),
        ((*ZEROSHOT, "--dataset", "mini_neon", "--set", "mini_neon.render_seed=-1"), "'render_seed' takes an integer"),
        ((*ZEROSHOT, "--device", f"cuda:{HUGE * 300}"), "--device takes cpu, cuda, cuda:N or auto"),
        ((*ZEROSHOT, "--output", LONG), "is too long for a path: a name has at most 255 bytes"),
        ((*ZEROSHOT, "--output", "long/" * 900), "is too long for a path: a name has at most 255 bytes, a path 4095"),
        ((*ZEROSHOT, "--output", "a\0b"), "it holds a NUL character"),
        ((*ZEROSHOT, "--output", "a\ud800"), "it holds half a character"),
        ((*ZEROSHOT, "--output", "~nobody-of-that-name/x"), "that home folder is not known; write the whole path"),
        ((*ZEROSHOT, "--output", "loop"), "The output folder loop cannot be written"),
        ((*ZEROSHOT, "--output", "/dev/null"), "The output folder /dev/null cannot be written"),
        ((*ZEROSHOT, "--suite", f"{LONG}.yaml"), "is too long for a path"),
        ((*ZEROSHOT, "--suite", "loop/x.yaml"), "loop/x.yaml: the suite cannot be read"),
        ((*ZEROSHOT, "--suite", "\udcff.yaml"), "the suite cannot be read (No such file"),
        ((*ZEROSHOT, "--plugin", "loop"), "There is no plugin file"),
        ((*ZEROSHOT, "--plugin", LONG), "is too long for a path"),
        ((*ZEROSHOT, "--data-root", LONG), "is too long for a path"),
        ((*ZEROSHOT, "--backbone", f"{LONG}:openai"), "is too long for a path"),
        ((*ZEROSHOT, "--backbone", f"{LONG}.json:random"), "is too long for a path"),
        ((*ZEROSHOT, "--backbone", f"ViT-B-16:{LONG}"), "is too long for a path"),
        ((*ZEROSHOT, "--dataset", f"folder:{LONG}"), "is too long for a path"),
        ((*COOP, "--sampler", f"file:{LONG}"), "is too long for a path"),
        ((*COOP, "--sampler", "file:/dev/zero"), "/dev/zero is no file"),
        (("run", "--method", "coop", "--suite", "/dev/zero"), "the suite cannot be read (it is a device)"),
        (("predict", "--run", "/dev/zero", "a.png"), "/dev/zero is a device or a pipe"),
        (("regenerate", "/dev/zero"), "/dev/zero"),
        (("table", "--results", "/dev/zero"), "no results at /dev/zero"),
        ((*COOP, "--sampler", "file:birds"), "birds is no file"),
        (("table", "--results", LONG), "is too long for a path"),
        (("table", "--results", "loop"), "There are no results at"),
        (("report", "--results", "birds", "-o", LONG), "is too long for a path"),
        (("plot", "gain", "-o", LONG), "is too long for a path"),
        (("results", "merge", LONG, "-o", "merged"), "is too long for a path"),
        (("status", "--output", LONG), "is too long for a path"),
        (("eval", "--run", LONG, "--protocol", "ood"), "is too long for a path"),
        (("predict", "--run", LONG, "a.png"), "is too long for a path"),
        (("export", "--run", LONG, "-o", "y"), "is too long for a path"),
        (("diff", LONG, "birds"), "is too long for a path"),
        (("describe", LONG), "Unknown method, dataset, protocol, score, suite, metric or column"),
        (("data", "prepare", "dtd", "--data-root", LONG), "is too long for a path"),
        (("data", "sample", "folder:birds", "-o", LONG), "is too long for a path"),
        (("cache", "clear", "--older-than", HUGE * 300), "takes a number of days from 0 on"),
        (("check-plugin", "loop"), "There is no Python file"),
        (("check-plugin", "\udcff.py"), "There is no Python file"),
        (("regenerate", LONG), "is too long for a path"),
        (("",), "Unknown command ''"),
        (("-",), "--"),
        (("--",), "--"),
    ],
)
def test_what_no_machine_can_have(refused: Said, here: Path, words: tuple[str, ...], says: str) -> None:
    (here / "loop").symlink_to("loop")
    assert says in refused(*words)


def test_nothing_typed_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0  # as argparse gives `--help`
    said = capsys.readouterr()
    assert said.out.startswith("usage: promptbench") and not said.err


def test_a_grid_of_templates_needs_no_quotes() -> None:
    options = parser().parse_args(["run", "--grid", "zeroshot.template=a photo of a {}.,a {}.", "coop.n_ctx=1,2"])
    assert grid_of(options.points) == {"zeroshot.template": ["a photo of a {}.", "a {}."], "coop.n_ctx": [1, 2]}
    assert grid_of(["zeroshot.template={}"]) == {"zeroshot.template": ["{}"]}
    assert grid_of(["zeroshot.template='a, {}','{}'"]) == {"zeroshot.template": ["a, {}", "{}"]}


def test_a_device_that_is_not_there(refused: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "--device cpu" in refused(*COOP, "--device", "cuda")


def test_a_run_of_a_gpu_is_not_evaluated_elsewhere(refused: Said, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    stored = json.loads(next((REPOSITORY / "results" / "mini").rglob("coop-*.json")).read_text())
    path = here / "runs" / "results" / "base2new" / "mini_shapes" / "coop-0123456789ab.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({**stored, "spec": {**stored["spec"], "device": "cuda"}}))
    assert "coop-0123456789ab.json was trained on cuda, which is not here" in refused(
        "eval", "--run", str(path), "--protocol", "ood"
    )


def test_weights_that_are_not_there_or_damaged(refused: Said, here: Path) -> None:
    (here / "noise.pt").write_bytes(b"\x93noise" * 99)
    architecture = TINY.partition(":")[0]
    other = ("run", "--method", "zeroshot", *BIRDS, "--backbone")
    assert "neither a weight file nor a pretrained tag" in refused(*other, f"{architecture}:none.pt")
    assert "'opneai'" in (said := refused(*other, "ViT-B-16:opneai")) and "Did you mean 'openai'?" in said
    assert "noise.pt is not a readable checkpoint: it is not in torch's" in refused(*other, f"{architecture}:noise.pt")
    (here / "empty.json").write_text("{}")
    assert "empty.json is no architecture" in refused(*other, "empty.json:random")


def test_a_suite_that_does_not_fit(refused: Said, here: Path) -> None:
    suite = here / "mine.yaml"
    call = ("run", "--method", "coop", "--suite", "mine.yaml")
    suite.write_text("title: x\nbackbone: mini\nsead: 1\nroles: {base2new: [mini_shapes]}\n")
    assert "mine.yaml: Unknown key 'sead'. Did you mean 'seeds'?" in refused(*call)
    suite.write_text("title: [x\n")
    assert "mine.yaml:2: this is no YAML" in refused(*call)
    suite.write_text("title: x\nbackbone: mini\nroles: {base2new: [nothing]}\n")
    assert "Unknown dataset 'nothing'" in refused(*call)
    suite.write_text("title: x\nbackbone: mini\nroles: {source: [mini_shapes]}\n")
    assert "Unknown role 'base2new'" in refused(*call)


def test_a_data_root_that_is_not_given(refused: Said) -> None:
    said = refused(*CLIP11, "dtd")
    assert "'dtd' needs a data root" in said and "--data-root" in said and "PROMPTBENCH_DATA" in said


def test_a_data_root_without_the_dataset(refused: Said, here: Path) -> None:
    said = refused(*CLIP11, "dtd", "--data-root", "birds")
    assert f"looked for dtd/split_zhou_DescribableTextures.json in {here / 'birds'}" in said
    assert "not a folder" in refused(*CLIP11, "dtd", "--data-root", "nowhere")


def test_images_that_the_split_names_but_are_not_there(refused: Said, here: Path) -> None:
    make_fake.make("dtd", here / "data")
    for name in ("banded", "braided"):
        shutil.rmtree(here / "data" / "dtd" / "images" / name)
    said = refused(*CLIP11, "dtd", "--data-root", "data")
    assert "lacks " in said and "banded/" in said and str(here / "data" / "dtd" / "images") in said


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xff\xfe{", "it is not UTF-8 text"),
        (b"[1, 2", "is not valid JSON"),
        (b'{"train": []}', 'must be an object with the lists "train", "val" and "test"'),
        (b'{"train": [["../a.jpg", 0, "a"]], "test": []}', "must stay inside the dataset's folder"),
    ],
)
def test_a_split_file_that_cannot_be_used(refused: Said, here: Path, content: bytes, says: str) -> None:
    make_fake.make("dtd", here / "data")
    (here / "data" / "dtd" / "split_zhou_DescribableTextures.json").write_bytes(content)
    assert says in refused(*CLIP11, "dtd", "--data-root", "data")


def test_folders_that_are_no_dataset(refused: Said, here: Path) -> None:
    call = (*RUN, "--method", "coop", "--dataset")
    (here / "empty").mkdir()
    assert "has no class folders" in refused(*call, "folder:empty")
    said = refused(*call, "folder:nowhere")
    assert f"'nowhere' was not found: there is no folder {here / 'nowhere'}; name" in said
    assert "write its name, or folder:PATH" in refused(*call, "folder:")
    assert "'root' must be given" in refused(*call, "folder")
    make_fake.make_folder(here / "lonely", names=("wren",))
    halved = (*call, "folder:lonely", "--protocol", "base2new")
    assert "'lonely' has no test images of its new classes" in refused(*halved)
    (here / "birds" / "hollow").mkdir()
    assert "hollow holds no images" in refused(*call, "folder:birds")


def test_two_class_names_that_read_the_same(refused: Said, here: Path) -> None:
    make_fake.make_folder(here / "twins", names=("blue_jay", "Blue jay", "wren"))
    said = refused(*RUN, "--method", "coop", "--dataset", "folder:twins")
    assert "'Blue jay'" in said and "'blue_jay'" in said and "read the same" in said


def test_prompts_that_are_too_long(refused: Said, here: Path) -> None:
    assert "longer than the 77 tokens" in refused(*COOP, "coop.ctx_init=", "coop.n_ctx=80")
    name = "_".join("0123456789" * 8)  # a token each
    make_fake.make_folder(here / "long", names=("blue_jay", "robin", name))  # the last one is a new class
    assert "longer than the 77 tokens" in refused(*RUN, "--method", "coop", "--dataset", "folder:long")


def test_an_output_that_cannot_be_written(
    refused: Said, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "file").write_text("mine")
    monkeypatch.setattr("promptbench.runs.run.execute", lambda *_: pytest.fail("it was trained"))
    for output in ("file", "file/below"):
        assert f"The output folder {output} cannot be written" in refused(*COOP, "--output", output)

    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("promptbench.storage.atomic.tempfile.TemporaryFile", full)
    assert "(No space left on device)" in refused(*COOP)


@pytest.mark.slow
def test_what_exists_is_never_overwritten(
    refused: Said, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([*COOP]) == 0
    capsys.readouterr()
    (result,) = here.rglob("coop-*.json")
    text = result.read_text()
    result.write_text(text[:100])
    assert "is not a promptbench result" in refused(*COOP)
    result.write_text(json.dumps({**json.loads(text), "spec": {**json.loads(text)["spec"], "data_seed": 5}}))
    assert "holds another run than its name says" in refused(*COOP)


def test_images_that_changed_since_a_run(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main([*COOP]) == 0
    make_fake.write_image(here / "birds" / "wren" / "new.png")
    assert main([*COOP]) == 0
    (said,) = [text for text in caplog.messages if "finished" in text]
    assert (
        said.startswith("finished runs made with other splits of 'birds' than today's: ") and "they run again" in said
    )
    stored = {path: path.read_bytes() for path in here.rglob("results/**/*.json")}
    shutil.rmtree(here / "birds")
    assert main([*COOP]) == 0  # they are gone, and what was measured on them stands
    assert stored == {path: path.read_bytes() for path in here.rglob("results/**/*.json")}


def test_a_corrupt_image_is_named_and_fails_its_runs_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_fake.make_folder(here / "fine")
    for image in (here / "birds" / "robin").iterdir():
        image.write_bytes(image.read_bytes()[:60])
    words = list(COOP)
    words[words.index("folder:birds") + 1 : 1] = []
    words.insert(words.index("folder:birds") + 1, "folder:fine")
    assert main(words) == 1
    captured = capsys.readouterr()
    assert str(here / "birds" / "robin") in captured.err and "Cannot read the image" in captured.err
    assert "Traceback" not in captured.err and "fine" in captured.out
    reasons = [json.loads(path.read_text())["reason"] for path in here.rglob("*.failed.json")]
    assert reasons and all("Cannot read the image" in reason for reason in reasons)
    assert all("leave such images out with --on-bad-image skip" in reason for reason in reasons)


@pytest.mark.slow
def test_fewer_images_than_shots_are_said(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    assert main([*COOP, "--shots", "16"]) == 0
    assert "3 of 3 classes of 'birds' have fewer than 16 training images" in caplog.text
    assert "'blue_jay' 5" in caplog.text


@pytest.mark.slow
def test_words_the_weights_never_saw_are_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    backbone = load_backbone(TINY)
    backbone.known_tokens = frozenset(backbone.tokenizer(["a photo of a blue jay robin."])[0, :9].tolist()) | {49407}
    monkeypatch.setattr("promptbench.runs.session.load_backbone", lambda name: backbone)
    assert main([*COOP]) == 0
    said = [record.getMessage() for record in caplog.records if "never trained" in record.getMessage()]
    assert len(said) == 1 and "'wren'" in said[0] and "robin" not in said[0]


def test_a_plugin_that_does_not_work(refused: Said, here: Path) -> None:
    plugin = here / "mine.py"
    call = (*RUN, *BIRDS, "--method", "mine", "--plugin", "mine.py")
    plugin.write_text("import nothing_of_that_name\n")
    assert "mine.py:1: ModuleNotFoundError" in refused(*call)
    plugin.write_text("x = (\n")
    assert "SyntaxError" in refused(*call)
    plugin.write_text("x = 1\n")
    assert "must hold one public class that subclasses Method" in refused(*call)
    (here / "coop.py").write_text("x = 1\n")
    assert "'coop' is already one of the methods" in refused(*COOP, "--plugin", "coop.py")
