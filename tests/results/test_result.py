"""Result files: what names them, what they hold, what they survive."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from promptbench.config import UsageError
from promptbench.results import result as results
from promptbench.results.result import (
    Result,
    Spec,
    check_writable,
    failure_path,
    find,
    read_result,
    read_results,
    result_path,
    write_failure,
    write_result,
)


def make_spec(**changes: Any) -> Spec:
    facts: dict[str, Any] = {
        "suite": "mini",
        "protocol": "base2new",
        "dataset": "mini_shapes",
        "method": "maple",
        "config": {"n_ctx": 2, "ctx_init": "a photo of a", "layers": (1, 2)},
        "recipe": {"epochs": 5, "lr": 0.0035, "origin": "transferred"},
        "shots": 16,
        "data_seed": 1,
        "train_seed": 1,
        "backbone": "mini",
        "threads": 2,
    }
    return Spec(**{**facts, **changes})


def make_result(spec: Spec | None = None, **changes: Any) -> Result:
    facts: dict[str, Any] = {
        "spec": spec or make_spec(),
        "conditions": {"weights_hash": "ab" * 32, "sample_size": 64},
        "metrics": {"base/accuracy": 83.5, "new/accuracy": 72.25},
        "cost": {"train_seconds": 1.5, "peak_memory_mb": None},
        "versions": {"torch": "2.14.1"},
        "commit": "",
        "created": "2026-01-02T03:04:05+00:00",
        "losses": [{"ce": 1.25}, {"ce": 0.5}],
    }
    return Result(**{**facts, **changes})


def test_a_result_reads_back_equal(tmp_path: Path) -> None:
    result = make_result(notes={"ood/auroc": "no patches"})
    path = write_result(tmp_path, result)
    assert path == tmp_path / "results" / f"{result.spec.name}.json"
    assert read_result(path) == result


def test_the_name_says_protocol_dataset_method_and_hash() -> None:
    spec = make_spec(method="ivlp", preset="maple")
    assert spec.name == f"base2new/mini_shapes/ivlp@maple-{spec.digest[:12]}"
    assert len(spec.digest) == 64


def test_equal_specs_have_equal_names_however_they_were_written() -> None:
    reordered = {"layers": [1, 2], "ctx_init": "a photo of a", "n_ctx": 2}
    assert make_spec(config=reordered) == make_spec()
    assert make_spec(config=reordered).digest == make_spec().digest


@pytest.mark.parametrize(
    "change",
    [
        {"suite": "other"},
        {"protocol": "few_shot"},
        {"dataset": "mini_icons"},
        {"method": "coop"},
        {"preset": "long"},
        {"config": {"n_ctx": 3}},
        {"recipe": {"epochs": 6}},
        {"shots": 8},
        {"shots": None},
        {"sampler": "stratified"},
        {"data_seed": 2},
        {"train_seed": 2},
        {"backbone": "ViT-B-16"},
        {"precision": "bf16-mixed"},
        {"threads": 1},
        {"device": "cuda"},
        {"dataset_options": {"fold": 2}},
    ],
)
def test_every_field_of_a_spec_changes_its_name(change: dict[str, Any]) -> None:
    assert make_spec(**change).digest != make_spec().digest


def test_the_digest_is_pinned() -> None:
    # Names of files on disk follow from it: it must not change between versions. By sha256sum, from
    # {"backbone":"mini","config":{},"data_seed":1,"dataset":"mini_shapes", ... ,"threads":1,"train_seed":1}.
    spec = make_spec(config={}, recipe={}, threads=1)
    assert spec.digest == "de34877e939747c1d25de91e902070ab57cc9ccf7c96d49ffa52959c3d8a0aea"


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "a/b\\c:d", "", "..", "a\nb", "x" * 500, "データ", "-rf", "\ud800"]
)
def test_hostile_names_stay_inside_the_folder(tmp_path: Path, name: str) -> None:
    spec = make_spec(dataset=name, method=name)
    path = write_result(tmp_path, make_result(spec))
    assert (tmp_path / "results").resolve() in path.resolve().parents
    assert path.relative_to(tmp_path).parts[:2] == ("results", "base2new")
    assert read_result(path).spec == spec
    assert make_spec(dataset=name + "!", method=name).name != spec.name


def test_a_file_is_readable_json_with_sorted_keys_and_a_last_newline(tmp_path: Path) -> None:
    path = write_result(tmp_path, make_result())
    text = path.read_text()
    assert text.endswith("}\n")
    assert text == json.dumps(json.loads(text), indent=1, sort_keys=True) + "\n"


def test_a_finished_result_is_never_overwritten(tmp_path: Path) -> None:
    first = write_result(tmp_path, make_result())
    before = first.read_bytes(), first.stat().st_mtime_ns
    assert write_result(tmp_path, make_result(metrics={"base/accuracy": 1.0})) == first
    assert (first.read_bytes(), first.stat().st_mtime_ns) == before


def test_a_foreign_file_under_the_name_is_neither_overwritten_nor_taken_for_the_run(tmp_path: Path) -> None:
    path = result_path(tmp_path, make_spec())
    path.parent.mkdir(parents=True)
    path.write_text('{"half": ')
    with pytest.raises(UsageError, match="not valid JSON"):
        write_result(tmp_path, make_result())
    assert path.read_text() == '{"half": '
    path.unlink()
    other = write_result(tmp_path, make_result(make_spec(shots=4)))
    other.rename(path)
    with pytest.raises(UsageError, match="holds another run than its name says; move it away"):
        find(tmp_path, make_spec())


def test_find_tells_finished_runs_from_others(tmp_path: Path) -> None:
    assert find(tmp_path, make_spec()) is None
    path = write_result(tmp_path, make_result())
    assert find(tmp_path, make_spec()) == path
    assert find(tmp_path, make_spec(train_seed=2)) is None


def test_a_success_removes_the_failure_before_it(tmp_path: Path) -> None:
    spec = make_spec()
    failure = write_failure(tmp_path, spec, reason="The loss is nan.", where={"epoch": 2, "lr": 0.1})
    assert failure == failure_path(tmp_path, spec)
    assert failure.name.endswith(".failed.json")
    assert find(tmp_path, spec) is None
    write_result(tmp_path, make_result(spec))
    assert not failure.exists()


def test_a_failure_says_why_and_where(tmp_path: Path) -> None:
    where = {"epoch": 2, "lr": 0.1, "loss": float("nan"), "seeds": (1, 2), "path": Path("x")}
    path = write_failure(tmp_path, make_spec(), reason="The loss is nan.", traceback="Traceback ...", where=where)
    assert path is not None
    record = json.loads(path.read_text())
    assert record["where"] == {"epoch": 2, "lr": 0.1, "loss": "nan", "seeds": [1, 2], "path": "x"}
    assert record["reason"] == "The loss is nan."
    assert record["traceback"] == "Traceback ..."
    assert Spec(**record["spec"]) == make_spec()
    assert "torch" in record["versions"]


def test_a_failure_leaves_a_finished_result_alone(tmp_path: Path) -> None:
    path = write_result(tmp_path, make_result())
    before = path.read_bytes()
    assert write_failure(tmp_path, make_spec(), reason="Out of memory.") is None
    assert [item for item in tmp_path.rglob("*") if item.is_file()] == [path]
    assert path.read_bytes() == before


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruption: BaseException
) -> None:
    def stop(*_: object) -> None:
        raise interruption

    for step in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(results.os, step, stop)
            with pytest.raises((KeyboardInterrupt, UsageError)):
                write_result(tmp_path, make_result())
    assert not [item for item in tmp_path.rglob("*") if item.is_file()]
    assert write_result(tmp_path, make_result()).exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "83", None, True])
def test_a_metric_is_a_finite_number(value: object) -> None:
    with pytest.raises((TypeError, ValueError), match="metrics"):
        make_result(metrics={"base/accuracy": value})


def test_what_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="a PosixPath cannot be stored"):
        make_spec(config={"file": Path("/x")})
    with pytest.raises(TypeError, match="a PosixPath cannot be stored"):
        write_result(tmp_path, make_result(conditions={"file": Path("/x")}))
    with pytest.raises(ValueError, match="float"):
        write_result(tmp_path, make_result(losses=[{"ce": float("inf")}]))
    with pytest.raises(TypeError, match="spec.data_seed must be int"):
        make_spec(data_seed="1")
    assert not [item for item in tmp_path.rglob("*") if item.is_file()]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("[]", "no valid 'schema'"),
        ("[" * 100_000, "not valid JSON"),
        ('{"schema": "1"}', "no valid 'schema'"),
        ('{"schema": true}', "no valid 'schema'"),
        ('{"schema": 0}', "no valid 'schema'"),
        ('{"schema": 1}', "spec"),
        ('{"schema": 1, "spec": 5}', "spec"),
        ('{"schema": 99, "what": "ever"}', "newer promptbench .result schema 99, this version reads up to 2."),
        ('{"schema": 1, "metrics": {"base/accuracy": NaN}}', "NaN is not a number"),
    ],
)
def test_a_file_that_is_no_result_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "odd.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        read_result(path)
    assert "odd.json" in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"metrics": {"base/accuracy": "83"}},
        {"metrics": [1, 2]},
        {"metrics": {"base/accuracy": "1e999"}},
        {"notes": {"h": 3}},
        {"surprise": 1},
        {"spec": {"method": "maple"}},
        {"losses": {}},
    ],
)
def test_a_damaged_result_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    path = write_result(tmp_path, make_result())
    damaged = json.dumps({**json.loads(path.read_text()), **change}).replace('"1e999"', "1e999")
    path.write_text(damaged)
    with pytest.raises(UsageError, match="not a valid promptbench result"):
        read_result(path)


def test_binary_and_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="a.json"):
        read_results(tmp_path)
    with pytest.raises(UsageError, match="There are no results at .*nowhere"):
        read_results(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"gone\.json cannot be read"):
        read_result(tmp_path / "gone.json")


def test_results_come_sorted_once_each_and_without_failures(tmp_path: Path) -> None:
    specs = [make_spec(method=method, train_seed=seed) for method in ("maple", "coop") for seed in (2, 1)]
    paths = [write_result(tmp_path, make_result(spec)) for spec in specs]
    write_failure(tmp_path, make_spec(method="vpt"), reason="Stopped.")
    (paths[0].parent / ".draft.json.tmp").write_text("{")
    (tmp_path / "other.json").write_text("{}")
    names = [result.name for result in read_results(tmp_path, paths[0], tmp_path / "results")]
    assert names == sorted(spec.name for spec in specs)


def test_a_folder_that_cannot_be_written_is_said_before_training(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "folder")
    assert not [item for item in (tmp_path / "new").rglob("*") if item.is_file()]
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file cannot be written .*--output"):
        check_writable(tmp_path / "file")
    with pytest.raises(UsageError, match="cannot be written"):
        write_result(tmp_path / "file" / "below", make_result())


def test_results_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_result().commit = "x"  # type: ignore[misc]


@pytest.mark.slow
def test_a_thousand_files_are_read_within_two_seconds(tmp_path: Path) -> None:
    path = write_result(tmp_path, make_result())
    text = path.read_text()
    for index in range(1000):
        (path.parent / f"copy-{index}.json").write_text(text)
    start = time.process_time()
    assert len(read_results(tmp_path)) == 1001
    assert time.process_time() - start < 2.0  # measured: 0.3 s on a busy core


def test_importing_results_does_not_import_torch() -> None:
    code = "import sys, promptbench.results.result; assert not {'torch', 'numpy', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
