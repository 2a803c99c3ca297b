"""Files of other versions, and what changed behind equal names: noticed, said, never silently used again."""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import make_fake
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from shared_paths import ARCHITECTURE, SUPPORT

from promptbench import registry
from promptbench.cli.flags import request_of
from promptbench.cli.main import main, parser
from promptbench.clip.load import load_backbone
from promptbench.config import UsageError
from promptbench.data import features
from promptbench.data.dataset import open_dataset
from promptbench.results import result as results
from promptbench.results.result import read_result
from promptbench.results.spec import fields_of
from promptbench.runs import session as identity
from promptbench.runs.plan import plan_runs
from promptbench.storage.versions import Bare, code_digest, other_code
from promptbench.sweep import preflight
from promptbench.training.files import PARTIAL_FORMAT, Partial, PartialFile, training_key

SCHEMA_1 = SUPPORT / "result-schema-1.json"
WHAT = ("--protocol", "base2new", "--dataset", "folder:birds")
RUN = ("run", *WHAT, "--threads", "1", "--shots", "2", "--seeds", "1", "--set", "coop.epochs=1")
RUN += ("coop.batch=4", "--backbone", f"{ARCHITECTURE}:weights.pt", "--method", "coop")
OUT = Path("promptbench-runs")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current directory with images, a weight file, and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROMPTBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(registry, "_files", {kind: {} for kind in ("methods", "datasets", "protocols")})
    make_fake.make_folder(tmp_path / "birds")
    write_weights(tmp_path / "weights.pt", 0)
    yield tmp_path
    torch.set_num_threads(1)


def write_weights(path: Path, seed: int) -> None:
    clip = load_backbone(f"{ARCHITECTURE}:random").clip
    state = {name: tensor.clone() for name, tensor in clip.state_dict().items()}
    state["visual.proj"] += seed
    torch.save(state, path)


def stored(folder: Path) -> dict[str, Any]:
    """The only result of CoOp in a folder; zero-shot runs go with it."""
    (path,) = folder.rglob("results/**/coop-*.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


# Results of other schemas


def test_the_first_schema_is_read_for_ever() -> None:
    result = read_result(SCHEMA_1)
    assert json.loads(SCHEMA_1.read_text())["schema"] == 1
    assert result.spec.label == "coop" and result.metrics["new/accuracy"] == 93.0
    assert result.name == "base2new/mini_colours/coop-1d14072f63b8"  # as its file was called


def test_a_training_that_devices_shared_is_no_run_of_today(tmp_path: Path) -> None:
    record = json.loads(SCHEMA_1.read_text())
    path = tmp_path / "shared.json"
    for devices in (1, 2):
        path.write_text(json.dumps({**record, "spec": {**record["spec"], "devices": devices}}))
        if devices == 1:
            assert read_result(path).spec == read_result(SCHEMA_1).spec
        else:
            with pytest.raises(UsageError, match="several devices shared the training"):
                read_result(path)


def test_every_past_schema_has_an_upgrade_and_a_stored_document() -> None:
    assert sorted(results.UPGRADES) == list(range(1, results.SCHEMA))
    for schema in range(1, results.SCHEMA + 1):
        assert read_result(SUPPORT / f"result-schema-{schema}.json").schema == results.SCHEMA


def test_an_older_document_is_upgraded_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there had been two schemas since, one that renamed a field and one that took a note out."""
    record = json.loads(SCHEMA_1.read_text())
    record["figures"] = record.pop("metrics")
    record["by"] = "hand"
    (tmp_path / "a.json").write_text(json.dumps(record))

    def renamed(data: dict[str, Any]) -> dict[str, Any]:
        return {**{key: value for key, value in data.items() if key != "figures"}, "metrics": data["figures"]}

    def without(data: dict[str, Any]) -> dict[str, Any]:
        assert data["schema"] == 2 and "metrics" in data
        return {key: value for key, value in data.items() if key != "by"}

    monkeypatch.setattr(results, "SCHEMA", 3)
    monkeypatch.setattr(results, "UPGRADES", {1: renamed, 2: without})
    result = read_result(tmp_path / "a.json")
    assert result.schema == 3 and result.metrics["new/accuracy"] == 93.0
    del record["figures"]
    (tmp_path / "a.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match="not a valid promptbench result: 'figures'"):
        read_result(tmp_path / "a.json")


def test_a_newer_schema_is_refused_with_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results" / "base2new" / "mini_colours" / "coop-0123456789ab.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({**json.loads(SCHEMA_1.read_text()), "schema": results.SCHEMA + 1}))
    for words in (("table", "--results", str(tmp_path)), ("predict", "--run", str(path), "x.png")):
        assert main(list(words)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{path} was written by a newer promptbench (result schema 3" in line
        assert "update promptbench" in line


# Features, trainings and notes of trainings of other versions


def test_features_of_another_version_or_format_are_not_used(
    here: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    backbone, birds = load_backbone(f"{ARCHITECTURE}:random"), open_dataset("folder", {"root": str(here / "birds")})
    items = birds.items("test")
    made = features.image_features(backbone, birds, items)
    path = features.path_of(features.key(backbone, birds, items))
    assert torch.equal(features.read(path, len(items)).cls, made.cls)  # type: ignore[union-attr]
    monkeypatch.setattr(features, "FORMAT", "promptbench features/other")
    assert features.read(path, len(items)) is None and "of another format" in caplog.text
    before = features.key(backbone, birds, items)
    monkeypatch.setattr(features, "library_versions", lambda: {"torch": "99.0"})
    assert features.key(backbone, birds, items) != before


@pytest.mark.slow
def test_trainings_of_another_version_format_or_code_are_not_used(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(list(RUN)) == 0
    (path,) = (OUT / "trainings").glob("*.safetensors")
    result = next((OUT / "results").rglob("coop-*.json"))
    spec = read_result(result).spec
    key = training_key(spec)
    with monkeypatch.context() as patch:
        patch.setattr("promptbench.training.files.library_versions", lambda: {"torch": "99.0"})
        assert training_key(spec) != key
    assert training_key(replace(spec, training_code="3.11:other")) != key
    assert training_key(replace(spec, evaluation_code="3.11:other")) == key
    with safe_open(path, framework="pt") as file:
        tensors, about = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    save_file(tensors, path, metadata={**about, "format": "promptbench/9"})
    capsys.readouterr()
    assert main(["predict", "--run", str(result), str(next((here / "birds").rglob("*.png")))]) == 2
    assert "was written by a newer promptbench (promptbench/9)" in capsys.readouterr().err
    result.unlink()
    assert main(list(RUN)) == 0  # trained anew
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["format"] == about["format"]


def test_a_note_of_another_format_or_training_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note = Partial({"method.a": torch.ones(2)}, {"losses": [], "images": 0, "seconds": 0.0})
    file = PartialFile(tmp_path / "a.partial", "key")
    file.write(note)
    assert file.read() is not None and PARTIAL_FORMAT == "promptbench partial/3"
    assert PartialFile(tmp_path / "a.partial", "other").read() is None
    monkeypatch.setattr("promptbench.training.files.PARTIAL_FORMAT", "promptbench partial/99")
    assert file.read() is None


# What changed behind equal names


@pytest.mark.slow
def test_a_run_with_other_weights_behind_the_same_file_name_is_done_again(
    here: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([*RUN, "--save-predictions"]) == 0
    before = stored(OUT)
    os.utime(here / "weights.pt", (1, 1))  # touched, not changed
    monkeypatch.setattr("promptbench.runs.run.execute", lambda *_: pytest.fail("a finished run was done again"))
    assert main(list(RUN)) == 0 and not (OUT / "outdated").exists()
    monkeypatch.undo()
    monkeypatch.chdir(here)
    monkeypatch.setenv("PROMPTBENCH_CACHE", str(here / "cache"))

    write_weights(here / "weights.pt", 1)
    caplog.clear()
    assert main([*RUN, "--keep-outdated"]) == 0 and stored(OUT) == before
    assert "they are kept, as asked for" in caplog.text
    caplog.clear()
    assert main(list(RUN)) == 0
    said = [record.getMessage() for record in caplog.records if "finished run" in record.getMessage()]
    weights = f"{ARCHITECTURE}:weights.pt"
    assert said == [
        f"finished runs made with other weights of '{weights}' than today's: 3; they run again, and their old results "
        f"are kept in {OUT / 'outdated'}"
    ]
    after = stored(OUT)
    assert after["spec"]["weights_hash"] != before["spec"]["weights_hash"]
    assert after["conditions"]["training_key"] != before["conditions"]["training_key"]
    stem = next(OUT.rglob("results/**/coop-*.json")).stem
    kept = sorted(path.name for path in (OUT / "outdated").rglob("coop-*"))
    assert kept == [f"{stem}.1.json", f"{stem}.1.safetensors"]
    assert json.loads(next((OUT / "outdated").rglob("coop-*.json")).read_text()) == before

    write_weights(here / "weights.pt", 2)
    assert main(list(RUN)) == 0
    assert len(list((OUT / "outdated").rglob("coop-*.json"))) == 2  # nothing is replaced there


@pytest.mark.slow
def test_the_weights_are_hashed_once_for_each_state_of_their_file(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(list(RUN)) == 0
    loaded: list[str] = []

    def load(name: str) -> Any:
        loaded.append(name)
        return load_backbone(name)

    monkeypatch.setattr("promptbench.runs.session.load_backbone", load)
    assert main(list(RUN)) == 0 and loaded == []
    os.utime(here / "weights.pt", (2, 2))
    assert main(list(RUN)) == 0 and len(loaded) == 1
    assert main(list(RUN)) == 0 and len(loaded) == 1
    (here / "weights.pt").unlink()  # what was measured with them stands
    assert main(list(RUN)) == 0 and len(loaded) == 1


@pytest.mark.slow
def test_a_run_is_done_again_after_the_code_of_its_method_was_changed(
    here: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    both = [*RUN, "zeroshot"]
    assert main(both) == 0
    before = {path: path.read_bytes() for path in OUT.rglob("results/**/*.json")}
    real = identity.of_code

    def changed(session: Any, run: Any) -> dict[str, str]:
        found = real(session, run)
        version = found["method_code"].partition(":")[0]
        return {**found, "method_code": f"{version}:edited"} if run.spec.method == "coop" else found

    monkeypatch.setattr(identity, "PARTS", (identity.of_training, identity.of_evaluations, changed))
    capsys.readouterr()
    assert main([*both, "--dry-run"]) == 0
    states = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:4]]
    assert sorted(states) == ["done", "done", "outdated"]
    assert main(both) == 0
    (said,) = [record.getMessage() for record in caplog.records if "finished run" in record.getMessage()]
    assert "made before the code of 'coop' was changed: 1;" in said
    again = [path for path, content in before.items() if path.read_bytes() != content]
    assert [path.name.partition("-")[0] for path in again] == ["coop"]
    assert json.loads(again[0].read_text())["spec"]["method_code"].endswith(":edited")


def test_comments_docstrings_annotations_errors_and_sources_are_no_code() -> None:
    text = '"""Paper."""\nx = field(default=1, metadata={"source": "paper"})\n'
    text += 'def f(a: int) -> int:\n    """Doc."""\n    if a < 0:\n        raise ValueError(f"too low: {a}.")\n'
    text += "    return a\n"

    def code(source: str) -> str:
        return ast.dump(Bare().visit(ast.parse(source)))

    plain = code(text)
    assert code(text.replace("Paper.", "Other.").replace('"paper"', '"thesis"').replace("Doc.", "Text.")) == plain
    assert code(text.replace("return a\n", "return a  # why\n\n")) == plain
    assert code(text.replace("a: int", "a").replace(" -> int", "").replace("too low: {a}.", "{a} is low")) == plain
    assert code(text.replace("default=1", "default=2")) != plain
    assert code(text.replace("return a", "return -a")) != plain
    assert code(text.replace("{a}", "{-a}")) != plain
    assert code(text.replace("ValueError", "TypeError")) != plain


def test_what_a_result_does_not_say_counts_as_the_same() -> None:
    before = read_result(SCHEMA_1).spec
    assert before.weights_hash and not before.method_code
    now = code_digest("promptbench.methods.coop")
    assert now.count(":") == 1 and len(now.partition(":")[2]) == 64
    assert not other_code("", now)
    assert not other_code("2.7:" + "0" * 64, now)  # another Python reads the same code differently
    assert other_code(now[:-1] + ("0" if now[-1] != "0" else "1"), now)
    assert not preflight.cause_of(before, replace(before, method_code=now, sample_digest="ab", contents={"base": "ab"}))
    older, today, other = (replace(before, architecture=digest) for digest in ("ab", "facts-1:ab", "facts-1:cd"))
    assert not preflight.cause_of(older, today)  # a digest of the earlier kind, of what torch printed
    assert preflight.cause_of(today, other) == "made with another architecture of 'mini'"
    assert "other weights of 'mini'" in preflight.cause_of(before, replace(before, weights_hash="ab"))


def test_every_field_that_renews_says_why() -> None:
    spec = read_result(SCHEMA_1).spec
    made = {"str": "3.11:ab", "dict": {"base": "ab"}}
    renewing = [item.name for item in fields_of(spec) if item.metadata["renews"]]
    full = replace(spec, **{name: made[type(getattr(spec, name)).__name__] for name in renewing})
    for name in renewing:
        other = {"base": "cd"} if isinstance(getattr(full, name), dict) else "3.11:cd"
        cause = preflight.cause_of(full, replace(full, **{name: other}))
        assert cause.startswith(("made ", "trained ")) and "{" not in cause
        assert full.name == replace(full, **{name: other}).name  # it renews instead of naming


@pytest.mark.slow
def test_another_process_that_did_it_again_is_not_set_back(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(list(RUN)) == 0
    (path,) = OUT.rglob("results/**/coop-*.json")
    result, session = read_result(path), _bench()
    (run,) = [run for run in plan_runs(request_of(parser().parse_args(list(RUN)))) if run.spec.name == result.name]
    preflight.set_aside(session, [run], {result.name: "was outdated when this process looked"})
    assert path.exists() and not (OUT / "outdated").exists()


def _bench() -> Any:
    from promptbench.runs.session import Place, Session
    from promptbench.suite import load_suite

    suite = load_suite("mini")
    object.__setattr__(suite, "backbone", f"{ARCHITECTURE}:weights.pt")
    return Session(Place(OUT), suite)


@pytest.mark.slow
def test_finished_runs_are_read_once_and_their_images_looked_at_once(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    several = [*RUN, "zeroshot@seven"]
    assert main(several) == 0
    count = len(list(OUT.rglob("results/**/*.json")))
    read: list[Path] = []
    digests: list[str] = []
    original, digest = results.read_result, type(open_dataset("folder", {"root": "birds"})).split_digest
    monkeypatch.setattr(results, "read_result", lambda path, spec: (read.append(path), original(path, spec))[1])
    monkeypatch.setattr(
        "promptbench.data.dataset.Dataset.split_digest", lambda self: (digests.append(self.name), digest(self))[1]
    )
    assert main(several) == 0
    assert count == 4 and len(read) == len(set(read)) == count
    assert digests == ["birds"]
