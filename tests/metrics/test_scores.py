"""Scores as plugins: found, given as a file, asked for by the command, part of what decides a run; NegLabel by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import make_fake
import pytest
import torch
from shared_paths import TINY
from torch import Tensor

import promptbench as pb
from promptbench import registry
from promptbench.cli.main import main
from promptbench.config import UsageError
from promptbench.data.class_names import ClassNames
from promptbench.metrics.ood import open_score
from promptbench.metrics.scores import neglabel
from promptbench.results.result import Result, read_results

pytestmark = pytest.mark.usefixtures("no_plugins")

MARGIN = '''"""Margin: the largest logit minus the second one.

A. Author, "Margin", 2026, arXiv:2601.00002.
"""

from dataclasses import dataclass, field

from torch import Tensor

from promptbench.metrics.ood import Score


class Margin(Score):
    """A margin."""

    title = "Margin-1"
    needs = ("logits",)

    @dataclass(frozen=True, kw_only=True)
    class Config(Score.Config):
        """A factor."""

        factor: float = field(default=1.0, metadata={"source": "ours"})

    def of(self, logits: Tensor) -> Tensor:
        first, second = logits.topk(2, dim=-1).values.float().unbind(dim=-1)
        return self.config.factor * (first - second)
'''


@pytest.fixture
def margin(tmp_path: Path) -> str:
    path = tmp_path / "margin.py"
    path.write_text(MARGIN)
    return str(path)


@pytest.fixture
def words(tmp_path: Path) -> str:
    """The flags of a run of `ood` that takes a moment."""
    for name in ("birds", "owls"):
        make_fake.make_split_folders(tmp_path / name)
    (tmp_path / "small.yaml").write_text(
        f"""
title: small
backbone: "{TINY}"
threads: 1
seeds: [1]
roles:
  source: ["folder:{tmp_path / "birds"}"]
  ood: ["folder:{tmp_path / "owls"}"]
"""
    )
    return f"--suite {tmp_path / 'small.yaml'} --device cpu"


def run(words: str, output: Path, *more: str) -> int:
    call = ["run", "--method", "zeroshot", "--protocol", "ood", *words.split(), *more]
    return main([*call, "--save-predictions", "--output", str(output)])


def only(output: Path) -> Result:
    (result,) = read_results(output)
    return result


def test_scores_are_listed_and_described(margin: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "scores", "--plugin", margin]) == 0
    said = capsys.readouterr().out
    assert "margin     Margin-1  logits" in said and "NegLabel  cosines negatives  Jiang et al." in said
    assert main(["describe", "neglabel"]) == 0
    said = capsys.readouterr().out
    assert "arXiv:2403.20078" in said and "larger for in-distribution images" in said
    assert "Settings (--set neglabel.FIELD=VALUE)" in said and "groups       int    = 100" in said
    assert main(["check-plugin", margin]) == 0
    assert capsys.readouterr().out == "The score Margin, of which nothing is checked\n"


def test_a_file_with_a_score_is_known_as_one(margin: str) -> None:
    assert registry.add_file(margin) == "margin" and "margin" in registry.names("scores")
    score = open_score("margin", {"factor": 2})
    assert score.name == "margin" and score.asked == {"factor": 2.0}
    assert score.of(torch.tensor([[3.0, 1.0, 2.5]])).tolist() == [1.0]
    assert registry.source_digest("scores", "margin") and not registry.source_digest("scores", "mcm")
    with pytest.raises(UsageError, match="score 'margin': Unknown key 'factr'. Did you mean 'factor'?"):
        open_score("margin", {"factr": 2})


@pytest.mark.slow
def test_the_command_computes_a_score_of_a_file(
    margin: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, more = tmp_path / "plain", tmp_path / "more"
    assert run(words, plain) == 0
    asked = ("--plugin", margin, "--score", "margin", "--set", "margin.factor=2")
    assert run(words, more, *asked) == 0
    assert "| Margin-1 | Zero-shot CLIP " in capsys.readouterr().out
    before, after = only(plain), only(more)
    assert before.spec.scores == {} and after.spec.scores == {"margin": {"factor": 2.0}}
    assert before.name != after.name and before.spec.evaluation_code != after.spec.evaluation_code
    assert {name: after.metrics[name] for name in before.metrics} == before.metrics
    known = pb.load_predictions(more / "predictions" / f"{after.name}.safetensors")
    assert "margin" in known["owls"].scores and "owls/margin/auroc" in after.metrics

    path = Path(margin)
    path.write_text(MARGIN.replace("first - second", "second - first"))
    del registry.sys.modules["promptbench_plugin.scores.margin"]
    assert run(words, more, *asked) == 0  # the same run, made anew, for the score's code decides it
    again = only(more)
    assert again.name == after.name
    assert again.metrics["owls/margin/auroc"] == pytest.approx(100 - after.metrics["owls/margin/auroc"])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--score", "neglabl"), "Unknown score 'neglabl'. Did you mean 'neglabel'?"),
        (("--score", "neglabel"), "score 'neglabel': it needs a file of words, one a line, for instance"),
        (
            ("--score", "neglabel", "--set", "neglabel.words=nowhere.txt"),
            "score 'neglabel': words: nowhere.txt cannot be read (No such file or directory).",
        ),
        (("--score", "neglabel", "--set", "neglabel.word=x"), "Unknown key 'word'. Did you mean 'words'?"),
        (("--set", "neglabel.words=x"), "the score neglabel is not computed; ask for it with --score neglabel."),
    ],
)
def test_what_is_wrong_with_a_score_is_one_line(
    more: tuple[str, ...], said: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words, tmp_path / "runs", *more) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.err.count("\n") == 1 and not captured.out


def test_a_protocol_without_scores_takes_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--method", "zeroshot", "--score", "msp", "--dry-run", "list"]) == 2
    assert "--score msp: base2new has no scores of images; name another protocol." in capsys.readouterr().err


# NegLabel ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def nouns(tmp_path: Path) -> str:
    path = tmp_path / "nouns.txt"
    path.write_text("anvil\nRobin\n\nanvil\nbarge\ncandle\ndrum\n")
    return str(path)


def negatives(words: str, **settings: Any) -> Any:
    return open_score("neglabel", {"words": words, **settings})


def test_neglabel_is_the_share_of_the_softmax_that_falls_on_classes(nouns: str) -> None:
    """Two classes, three labels, temperature 0.5: by hand."""
    score = negatives(nouns, groups=1, temperature=0.5)
    classes, others = [0.5, 0.25], [0.0, 0.5, 0.25]
    mass = [sum(math.exp(2 * value) for value in values) for values in (classes, others)]
    found = score.of(torch.tensor([classes]), torch.tensor([others]))
    assert found.shape == (1,) and found.item() == pytest.approx(mass[0] / sum(mass), abs=1e-6)


def test_neglabel_is_the_mean_over_groups_of_equal_size(nouns: str) -> None:
    score = negatives(nouns, groups=2, temperature=1, seed=3)
    places = score.deal(5)
    assert places.shape == (2, 2) and sorted(places.flatten().tolist()) == [0, 1, 2, 3]  # the last one is dropped
    assert score.deal(1).tolist() == [[0]]
    classes, others = torch.tensor([[0.2, -0.1]]), torch.tensor([[0.3, 0.1, -0.2, 0.4, 0.9]])
    shares = [classes.exp().sum() / (classes.exp().sum() + others[0, group].exp().sum()) for group in places]
    assert score.of(classes, others).item() == pytest.approx(float(sum(shares)) / 2, abs=1e-6)


def test_negative_labels_are_the_words_least_similar_to_the_classes() -> None:
    """Classes along two axes; similarities by hand, the quantile halfway between the two of them."""
    classes = torch.eye(3)[:2]
    angles: list[list[float]] = [[1, 0, 0], [0.6, 0.8, 0], [0, 0, 1], [-1, 0, 0], [0, 0.6, 0.8]]
    # medians of similarities:     0.5        0.7          0          -0.5        0.3
    order = neglabel.least_similar(torch.tensor(angles), classes, share=0.6, percentile=0.5)
    assert order.tolist() == [3, 2, 4]
    # the largest similarities:  1, 0.8, 0, 0, 0.6
    assert neglabel.least_similar(torch.tensor(angles), classes, share=0.4, percentile=1.0).tolist() == [2, 3]
    assert len(neglabel.least_similar(torch.tensor(angles), classes, share=0.01, percentile=0.5)) == 1


def test_words_count_once_and_classes_do_not() -> None:
    assert neglabel.listed("anvil\n Robin\n\nanvil\nbarge\n", ["robin", "wren"]) == ["anvil", "barge"]


def test_negative_labels_are_encoded_by_frozen_clip(tiny: pb.Backbone, nouns: str) -> None:
    found = negatives(nouns, share=1).negative_features(ClassNames(["robin", "wren"]), tiny)
    texts = [f"The nice {word}." for word in ("anvil", "barge", "candle", "drum")]
    expected = tiny.clip.encode_text(tiny.tokenizer(texts), normalize=True)
    assert found.shape == expected.shape == (4, tiny.embed_dim)
    similarity: Tensor = found @ expected.mT
    assert torch.allclose(similarity.amax(dim=1), torch.ones(4), atol=1e-5)
    assert sorted(similarity.argmax(dim=1).tolist()) == [0, 1, 2, 3]


@pytest.mark.slow
def test_the_command_computes_neglabel_and_notes_the_words(nouns: str, words: str, tmp_path: Path) -> None:
    asked = ("--score", "neglabel", "--set", f"neglabel.words={nouns}", "neglabel.share=1", "neglabel.groups=2")
    assert run(words, tmp_path / "runs", *asked) == 0
    result = only(tmp_path / "runs")
    settings = result.spec.scores["neglabel"]
    assert settings["words"].startswith("file:") and len(settings["words"]) == 21 and settings["groups"] == 2
    assert 0 <= result.metrics["owls/neglabel/auroc"] <= 100
    copy = tmp_path / "copy.txt"
    copy.write_text(Path(nouns).read_text())
    assert negatives(str(copy)).asked == negatives(nouns).asked
    copy.write_text("other\n")
    assert negatives(str(copy)).asked != negatives(nouns).asked


@pytest.mark.slow
def test_negative_labels_change_no_other_figure_of_any_kind_of_method(nouns: str, words: str, tmp_path: Path) -> None:
    """Learned image features, text that depends on the image, and no text at all, which has no cosines."""
    methods = ("--method", "maple", "cocoop", "linear_probe", "--shots", "2")
    methods += ("--set", "maple.epochs=1", "cocoop.epochs=1")
    for output, more in (("plain", ()), ("more", ("--score", "neglabel", "--set", f"neglabel.words={nouns}"))):
        call = ["run", "--protocol", "ood", *words.split(), *methods, *more, "--output", str(tmp_path / output)]
        assert main(call) == 0
    plain, more_of = (
        {result.spec.method: result for result in read_results(tmp_path / of)} for of in ("plain", "more")
    )
    for method, before in plain.items():
        after = more_of[method]
        assert {name: after.metrics[name] for name in before.metrics} == before.metrics
        assert ("owls/neglabel/auroc" in after.metrics) == (method != "linear_probe")
    reason = more_of["linear_probe"].notes["owls/neglabel/"]
    assert reason == "NegLabel needs unscaled cosines, which this method does not give"
