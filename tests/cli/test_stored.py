"""What the command says and does of a stored result, also where nothing but result files was published."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from shared_paths import REPOSITORY

from promptbench.cli.main import main
from promptbench.results.result import Result, find_training, learned_path, read_result

MINI = REPOSITORY / "results" / "mini" / "results"
TRAIN = ("run", "--method", "coop", "--dataset", "mini_fabrics", "--seeds", "1", "--set", "coop.epochs=1")


def first(pattern: str, folder: Path = MINI) -> Path:
    return sorted(folder.glob(pattern))[0]


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a committed result alone, which a test must leave as it is."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "published"
    source = first("base2new/mini_fabrics/coop-*.json")
    target = folder / "results" / source.relative_to(MINI)
    target.parent.mkdir(parents=True)
    shutil.copy(source, target)
    before = contents(folder)
    yield target
    assert contents(folder) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with a short training."""
    folder = tmp_path_factory.mktemp("trained")
    assert main([*TRAIN, "--output", str(folder)]) == 0
    return folder


def test_a_result_is_described_on_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    path = first("base2new/mini_colours/coop-*.json")
    metrics = read_result(path).metrics
    assert main(["describe", str(path)]) == 0
    said = capsys.readouterr().out
    assert len(said.splitlines()) < 60 and max(map(len, said.splitlines())) < 160
    for part in (
        "coop (CoOp): base2new on mini_colours",
        f"base   {metrics['base/accuracy']:.1f}",
        f"h {metrics['h']:.1f}",
        "n_ctx",
        "suite mini",
        "16 a class",
        "torch",
    ):
        assert part in said
    assert "predictions  none" in said and "promptbench run --method coop --protocol base2new" in said


def test_of_a_result_with_many_evaluations_some_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", str(first("ood/*/maple-*.json"))]) == 0
    assert "more evaluations, see the file" in capsys.readouterr().out


def test_a_file_that_is_no_result_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "odd.json").write_text("{}")
    for command in ("describe", "reproduce"):
        assert main([command, str(tmp_path / "odd.json")]) == 2
        assert main([command, str(tmp_path / "gone.json")]) == 2
        assert "is not a promptbench result" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("predict", "a.png"), ("export", "-o", "out"), ("eval", "--protocol", "ood")])
def test_what_is_not_published_is_said_with_the_command_that_makes_it(
    words: tuple[str, ...], published: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (64, 64), "red").save("a.png")
    assert main([words[0], "--run", str(published), *words[1:]]) == 2
    said = capsys.readouterr().err
    assert "train it again" in said and "promptbench run --method coop --protocol base2new" in said


def test_predictions_that_were_not_kept_are_said_with_their_command(
    published: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", "--run", str(published)]) == 2
    said = capsys.readouterr().err
    assert "promptbench run --method coop" in said and said.rstrip().endswith("--save-predictions")


@pytest.mark.slow
def test_a_baseline_that_was_published_is_evaluated_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    source = first("base2new/mini_fabrics/zeroshot-*.json")
    target = tmp_path / "published" / "results" / source.relative_to(MINI)
    target.parent.mkdir(parents=True)
    shutil.copy(source, target)
    (tmp_path / "published" / "regenerate.yaml").touch()
    assert main(["eval", "--run", str(target), "--protocol", "base2new"]) == 0
    assert "results go to promptbench-runs" in capsys.readouterr().err
    assert len(contents(tmp_path / "published")) == 2
    (made,) = (tmp_path / "promptbench-runs").rglob("zeroshot-*.json")
    stored = read_result(source)
    assert {name: read_result(made).metrics[name] for name in stored.metrics} == pytest.approx(
        stored.metrics, rel=1e-4, abs=1e-4
    )


@pytest.mark.slow
def test_a_committed_training_is_evaluated_again_in_a_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source, stored = next(
        (path, read_result(path))
        for path in sorted(MINI.glob("base2new/mini_fabrics/coop-*.json"))
        if learned_path(MINI.parent, read_result(path).spec).exists()
    )
    clone = tmp_path / "clone"
    for path in (source, learned_path(MINI.parent, stored.spec)):
        (clone / path.relative_to(MINI.parent)).parent.mkdir(parents=True)
        shutil.copy(path, clone / path.relative_to(MINI.parent))
    before = contents(clone)
    run = str(clone / source.relative_to(MINI.parent))
    assert main(["eval", "--run", run, "--protocol", "base2new", "--output", "made"]) == 0
    (made,) = map(read_result, Path("made").rglob("coop-*.json"))
    assert made.metrics == pytest.approx(stored.metrics, abs=1e-3)
    assert made.conditions["selection"] == stored.conditions["selection"] != {}
    assert made.conditions["selection"]["kind"] == "pseudo-new classes" and contents(clone) == before


@pytest.mark.slow
def test_what_was_learned_is_kept_beside_results_and_used_from_there(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    source = first("results/base2new/*/coop-*.json", trained)
    clone = tmp_path / "clone"
    shutil.copytree(trained / "results", clone / "results")
    keep = ["results", "learned", str(trained), "-o", str(clone)]
    assert main([*keep, "--seeds", "2"]) == 2
    assert main([*keep, "--protocol", "base2new", "--seeds", "1"]) == 0
    assert "wrote 1 files" in capsys.readouterr().out
    run = clone / source.relative_to(trained)
    of_another_version(clone, run)
    before = contents(clone)

    Image.new("RGB", (64, 64), "red").save("a.png")
    said = []
    for path in (source, run):
        assert main(["predict", "--run", str(path), "a.png", "--format", "jsonl"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert main(["export", "--run", str(run), "-o", "exported"]) == 0
    assert main(["eval", "--run", str(run), "--protocol", "base2new"]) == 0
    assert "trained by other versions or code" in caplog.text
    again, stored = (
        read_result(first("results/base2new/*/coop-*.json", tmp_path / "promptbench-runs")),
        read_result(run),
    )
    assert again.metrics == stored.metrics
    assert again.spec.training_code == stored.spec.training_code
    assert again.conditions["training_key"] == stored.conditions["training_key"]
    assert contents(clone) == before


def of_another_version(clone: Path, run: Path) -> None:
    """Let a published training say that another version of the code has done it."""
    import safetensors.torch

    from promptbench.training import files

    path = learned_path(clone, read_result(run).spec)
    tensors, about = files.read_training(path)
    spec = {**json.loads(about["spec"]), "training_code": "3.0:old"}
    said = {**about, "spec": json.dumps(spec)}
    del said[files._CHECKSUM]
    path.write_bytes(safetensors.torch.save(tensors, {**said, files._CHECKSUM: files._metadata_digest(said)}))
    document = json.loads(run.read_text())
    document["spec"]["training_code"] = "3.0:old"
    document["conditions"]["training_key"] = "0" * 64
    run.write_text(json.dumps(document))


@pytest.mark.slow
def test_what_was_learned_on_other_images_is_not_evaluated(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    from promptbench.runs import session

    clone = tmp_path / "clone"
    shutil.copytree(trained / "results", clone / "results")
    assert main(["results", "learned", str(trained), "-o", str(clone)]) == 0
    run = first("results/base2new/*/coop-*.json", clone)
    monkeypatch.setattr(session, "contents_digest", lambda dataset, items: "f" * 64)
    assert main(["eval", "--run", str(run), "--protocol", "base2new", "--output", "out"]) == 1
    (failure,) = Path("out").rglob("*.failed.json")
    assert "other training images" in json.loads(failure.read_text())["reason"]


@pytest.mark.slow
def test_a_run_is_reproduced_to_the_last_digit(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = first("results/base2new/*/coop-*.json", trained)
    folder = trained.parent / "again"
    assert main(["reproduce", str(path), "--output", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "--set coop.epochs=1" in said and str(folder) in said
    assert "equal within 0.001" in said and "all to the last digit" in said and "the same settings, code" in said
    assert find_training(folder, made_in(folder)) is not None and not list(folder.rglob("zeroshot*"))
    assert main(["reproduce", str(path), "--output", str(folder)]) == 2
    assert "is there already" in capsys.readouterr().err


def made_in(folder: Path) -> Result:
    return read_result(first("results/base2new/*/coop-*.json", folder))


@pytest.mark.slow
def test_an_evaluation_of_a_training_is_reproduced(trained: Path, tmp_path: Path) -> None:
    run = first("results/base2new/*/coop-*.json", trained)
    assert main(["eval", "--run", str(run), "--protocol", "few_shot", "--output", str(trained)]) == 0
    evaluated = first("results/few_shot/*/coop-*.json", trained)
    assert read_result(evaluated).spec.trained_by == "base2new"
    assert main(["reproduce", str(evaluated), "--output", str(tmp_path / "again")]) == 0


@pytest.mark.slow
def test_other_figures_are_told_with_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(first("base2new/mini_neon/zeroshot-*.json").read_text())
    document["metrics"]["new/accuracy"] += 1.0
    document["metrics"]["gone/accuracy"] = 3.0
    document["versions"]["torch"] = "1.0"
    (tmp_path / "stored.json").write_text(json.dumps(document))
    words = ["reproduce", str(tmp_path / "stored.json"), "--output", str(tmp_path / "again")]
    assert main(words) == 1
    said = capsys.readouterr().out
    assert "1.0 → " in said and re.search(r"not equal within 0.001: 2 of \d+ figures differ by up to 1\b", said)
    assert "new/accuracy" in said and "gone/accuracy" in said and "nothing is trained" in said


@pytest.mark.slow
def test_settings_that_a_suite_has_changed_since_are_set_as_they_were(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads(first("base2new/mini_fabrics/coop-*.json").read_text())
    document["spec"]["recipe"]["epochs"] = 1
    (tmp_path / "stored.json").write_text(json.dumps(document))
    assert main(["reproduce", str(tmp_path / "stored.json"), "--output", str(tmp_path / "again")]) == 1
    said = capsys.readouterr().out
    assert "--set coop.epochs=1" in said and "not equal" in said
    assert "epochs of the training: 100 stored, 1 here" in said


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sampler": "file:0123"}, "--sampler file:PATH"),
        ({"plugin": "0123"}, "give its file with --plugin"),
        ({"suite": "nowhere"}, "suite 'nowhere'"),
        ({"dataset": "nowhere"}, "nowhere"),
    ],
)
def test_what_cannot_be_made_again_is_said(
    change: dict[str, str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads(first("base2new/mini_neon/zeroshot-*.json").read_text())
    document["spec"].update(change)
    (tmp_path / "stored.json").write_text(json.dumps(document))
    assert main(["reproduce", str(tmp_path / "stored.json")]) == 2
    assert says in capsys.readouterr().err
