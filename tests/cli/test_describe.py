"""`describe` says what every name is that commands and tables print, without rendering or reading an image."""

from __future__ import annotations

import inspect
import re

import pytest

from promptbench import registry
from promptbench.cli.main import main
from promptbench.mini.sets import SETS, SPLITS
from promptbench.protocol import Column
from promptbench.suite import load_suite

pytestmark = pytest.mark.usefixtures("no_plugins")

PROTOCOLS = registry.names("protocols")


def columns_of(name: str) -> list[Column]:
    """All columns that a protocol's tables can have of their own."""
    protocol = registry.load("protocols", name)()
    found = []
    for metric in protocol.metrics:
        found += protocol.columns(metric, [], [1])
    return found


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_is_explained_in_two_sentences(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    purpose = inspect.cleandoc(registry.load("protocols", name).__doc__ or "")
    assert len(re.findall(r"\.(?=\s|$)", purpose)) == 2
    assert main(["describe", name]) == 0
    assert purpose in capsys.readouterr().out


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_metric_of_a_protocol_is_described(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for metric in registry.load("protocols", name).metrics:
        assert main(["describe", metric]) == 0
        title, said, facts = capsys.readouterr().out.split("\n\n")
        assert title == metric and metric.removeprefix("full_").partition("_")[0] in said.lower().replace("-", "_")
        assert "is better" in facts


@pytest.mark.parametrize("name", PROTOCOLS)
def test_what_a_table_shows_first_is_explained_below_it(name: str) -> None:
    protocol = registry.load("protocols", name)()
    assert any(column.help for column in protocol.columns(protocol.metrics[0], [], [1]))


@pytest.mark.parametrize(
    ("name", "title", "said"),
    [
        ("h", "H", "the harmonic mean of both"),
        ("new", "new", "on images of the other classes"),
        ("FPR95", "fpr95", "lower is better"),
        ("drop", "drop", "points, -100 to 100, lower is better"),
        ("shots", "shots", "Training images of each class."),
        ("‡", "‡", "recipe chosen here"),
        ("§", "§", "reconstructed without its authors' code"),
    ],
)
def test_a_word_of_a_table_is_described(name: str, title: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", name]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{title}\n\n") and said in out


def test_a_name_that_nothing_has_gets_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    for name, nearest in (("fpr96", "fpr95"), ("mapel", "maple"), ("open_world_auk", "open_world_auc")):
        assert main(["describe", name]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith(
            f"Unknown method, dataset, protocol, score, suite, metric or column '{name}'. Did you mean '{nearest}'?"
        )


def test_the_images_of_rendered_sets_are_counted_as_they_are_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    names = [entry.dataset for entry in load_suite("mini").entries()]
    for name in names:
        drawn = SETS[name.removeprefix("mini_")]
        counts = [len(drawn.class_names) * drawn.per_class.get(split, 0) for split in SPLITS]
        assert registry.load("datasets", name).info.images == tuple(counts)
    assert main(["describe", "mini_colours"]) == 0
    assert "960 train, 320 val, 800 test" in capsys.readouterr().out
    assert main(["describe", "folder"]) == 0
    assert "images " not in capsys.readouterr().out.partition("Facts")[2].partition("\n\n")[0]
