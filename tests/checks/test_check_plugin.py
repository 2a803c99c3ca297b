"""`promptbench check-plugin` names what is wrong with a method in plain words, and only that."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from shared_paths import REPOSITORY
from short_cases import slow_but

from promptbench import registry
from promptbench.checks.plugin import kit
from promptbench.cli.main import main
from promptbench.clip.load import load_backbone
from promptbench.config import UsageError

GOOD = '''"""One learned word before the class name, in a file of one's own.

After Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022.
Code: none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from promptbench import prompts
from promptbench.method import Method, MethodConfig, Preset, Recipe


class Word(Method):
    category = "text"
    parameters_vit_b16 = 1024 - 512
    frozen_image_tower = True
    recipes = {("*", "*"): Recipe(epochs=1, lr=0.002, batch=512, origin="ours", overrides={"scale": 0.5})}
    presets = {"loud": Preset(config={"scale": 2.0})}

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        scale: float = field(default=1.0)
        layers: int = field(default=9, metadata={"at_most": ("text_depth",)})

    def __init__(self, config, backbone):
        super().__init__(config, backbone)
        self.ctx = nn.Parameter(prompts.random_context(1, backbone.text_width))

    def set_classes(self, names):
        super().set_classes(names)
        tokens = prompts.sentence_tokens(self.backbone, "X", self.class_names)
        self.start, self.tokens = tokens.embeddings[0, :1], tokens.after(2)

    def encode_classes(self):
        prefix = prompts.join(self.start, self.config.scale * self.ctx)
        return self.backbone.encode_text(self.tokens.embeddings, self.tokens.eot, prefix)

    def forward(self, images):
        return self.classify(self.encode_images(images), self.text_features())

    def loss(self, images, labels):
        return {"ce": F.cross_entropy(self(images).logits, labels)}
'''
LOSS = 'return {"ce": F.cross_entropy(self(images).logits, labels)}'
FORWARD = "return self.classify(self.encode_images(images), self.text_features())"
TOKENS = "self.start, self.tokens = tokens.embeddings[0, :1], tokens.after(2)"
CTX = "self.ctx = nn.Parameter(prompts.random_context(1, backbone.text_width))"
DOCSTRING = GOOD[: GOOD.index("from __future__")]

# By the check that must notice: what is replaced in the file above, by what, and a piece of what is said.
BROKEN: dict[str, tuple[str, str, str, str]] = {
    "NaN loss": (
        *(LOSS, 'return {"ce": F.cross_entropy(self(images).logits, labels) * float("nan")}'),
        *("the loss is finite and named", "the term 'ce' is nan; make every term one finite number"),
    ),
    "loss without names": (
        *(LOSS, "return F.cross_entropy(self(images).logits, labels)"),
        *("the loss is finite and named", 'loss() returns a Tensor; return its terms by name, such as {"ce": ...}'),
    ),
    "loss of every image": (
        *(LOSS, 'return {"ce": F.cross_entropy(self(images).logits, labels, reduction="none")}'),
        *("the loss is finite and named", "the term 'ce' is of shape (6,)"),
    ),
    "training changes CLIP": (
        *(LOSS, f"self.backbone.clip.logit_scale.data.add_(0.1)\n        {LOSS}"),
        *("training twice gives the same tensors and leaves CLIP", "training changed logit_scale of CLIP"),
    ),
    "making it changes CLIP": (
        *(CTX, f"{CTX}\n        backbone.clip.visual.conv1.weight.data.mul_(2)"),
        *("scoring images leaves CLIP bit-identical", "it changed visual.conv1.weight of CLIP"),
    ),
    "class tokens as a buffer": (
        *(TOKENS, f"{TOKENS}\n        self.register_buffer('token_suffix', self.tokens.embeddings)"),
        *("the state dict, which is the checkpoint, holds what is learned", "token_suffix, which is not"),
    ),
    "noise in the scores": (
        *(FORWARD, "image = self.encode_images(images).cls\n        image = image + torch.randn_like(image)\n"
          "        return self.classify(image, self.text_features())"),
        *("the same images twice give the same logits, bit for bit", "draw nothing at random unless self.training"),
    ),
    "other classes ignored": (
        *(TOKENS, f"if not hasattr(self, 'tokens'):\n            {TOKENS}"),
        *(
            "other class names and another number of classes can be scored, and the first ones again",
            "after set_classes with 5 other names the logits are (6, 3), not (6, 5)",
        ),
    ),
    "device by name": (
        *(FORWARD, f"if torch.cuda.is_available():\n            images = images.cuda()\n        {FORWARD}"),
        *("the source has no device, no precision, no width, no print", "line 47 calls .cuda(): devices and precision"),
    ),
    "device as text": (
        *(TOKENS, f'{TOKENS}\n        self.place = "cuda:0"'),
        *("the source has no device, no precision, no width, no print", "line 40 names the device 'cuda:0'"),
    ),
    "precision": (
        *(TOKENS, f"{TOKENS}\n        self.kind = torch.float16"),
        *("the source has no device, no precision, no width, no print", "line 40 names torch.float16: precision"),
    ),
    "width": (
        *(TOKENS, f"{TOKENS}\n        self.width = 512"),
        *("the source has no device, no precision, no width, no print", "line 40 has the literal 512: ask"),
    ),
    "no docstring": (DOCSTRING, "", "the docstring names a paper and its code", "the file has no docstring; begin it"),
    "no paper": (
        *('IJCV 2022.', "a journal."),
        *("the docstring names a paper and its code", "names no paper; give the arXiv id, the DOI or venue and year"),
    ),
    "no code": (
        *("\nCode: none.", ""),
        *("the docstring names a paper and its code", "no URL of the authors' code; write 'Code: https://...'"),
    ),
    "no category": ('category = "text"', "pass", "it says its category and how it is trained", "it has no category"),
    "unknown field in a recipe": (
        *('overrides={"scale": 0.5}', 'overrides={"scael": 0.5}'),
        *("every recipe and every preset can be resolved", "Unknown key 'scael'. Did you mean 'scale'?"),
    ),
    "unknown field at some shots": (
        *('overrides={"scale": 0.5}', 'overrides_at={8: {"scael": 0.5}}'),
        *("every recipe and every preset can be resolved", "Unknown key 'scael'. Did you mean 'scale'?"),
    ),
    "unknown field in a preset": (
        *('config={"scale": 2.0}', 'config={"scael": 2.0}'),
        *("every recipe and every preset can be resolved", "Unknown key 'scael'. Did you mean 'scale'?"),
    ),
    "a setting that is no plain value": (
        *("layers: int = field(default=9,", "other: Any = object()\n        layers: int = field(default=9,"),
        *("the settings are the same after a trip through YAML", "YAML cannot hold its settings"),
    ),
    "half precision replaces": (
        *("    def encode_classes", "    def load_state_dict(self, s):\n        self.ctx = nn.Parameter(s['ctx'])\n\n"
          "    def encode_classes"),
        *("tensors stored in half precision load into float32", "loading turned ctx into half precision"),
    ),
    "not what is cached": (
        *(FORWARD, "image = self.encode_images(images if torch.is_tensor(images) else images.pixels)\n"
          "        return self.classify(image, self.text_features())"),
        *("cached image features and pixels give the same logits", "with cached features line 46 raised"),
    ),
    "miscounted": (
        *("1024 - 512", "511"),
        *("the number of learned parameters on ViT-B/16", "`parameters_vit_b16` is 511, and it learns 512"),
    ),
    "infinite diagnostics": (
        *("    def encode_classes", "    def diagnostics(self, images):\n        return {'gate': float('inf')}\n\n"
          "    def encode_classes"),
        *("what it reports of an evaluation are finite numbers by name", "`diagnostics` returns 'gate': inf"),
    ),
    "one template": (
        *(TOKENS, f"{TOKENS}\n        self.before = self.class_names.template.partition('{{}}')[0]"),
        *("datasets may have a template of their own, or several", "with several templates line 40 raised"),
    ),
    "an error in forward": (
        *(FORWARD, "return self.layers[3]"),
        *("it can be made, told its classes, shown training images and asked", "line 46 raised AttributeError: 'Word'"),
    ),
    "features of classes": (
        *("    def forward(self, images):\n        " + FORWARD, "    def encode_images(self, images):\n"
          "        features = self.backbone.encode_image(images)\n"
          "        return features.map(lambda t: t + len(self.class_names))"),
        *("image features are the same for other classes", "encode_images depends on the classes"),
    ),
}  # fmt: skip


Check = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def check(tmp_path: Path, tiny_name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Check:
    """Runs the command on a source; returns its exit code and the lines that it prints."""
    monkeypatch.setattr(registry, "_files", {kind: {} for kind in registry._files})

    def run(source: str, *flags: str) -> tuple[int, list[str]]:
        path = tmp_path / "word.py"
        path.write_text(source, encoding="utf-8")
        code = main(["check-plugin", str(path), "--backbone", tiny_name, *flags])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.err.splitlines() if code == 2 else captured.out.splitlines()

    return run


def test_a_method_that_keeps_the_contract(check: Check, tiny_name: str) -> None:
    code, (first, *lines, last) = check(GOOD)
    assert (code, first) == (0, f"The method Word on the backbone {tiny_name}")
    assert [line for line in lines if not line.startswith("ok    ")] == [
        "skip  its controls are presets or methods, and say what they take away: it declares none of its own",
        "skip  loaded where no training image is, as `predict` does, it gives the same logits: it looks at no training "
        "image before its training",
        "skip  in the control `noise`, what it makes prompts from is noise: it makes no prompts from images, or does "
        "not say so by `image_conditional`",
        "skip  its learned prompts are tokens of a tower, and others give other logits: it learns no prompts, or does "
        "not name them in `learned_prompts`",
        "skip  image features are the same for other classes: it has a forward of its own",
    ]
    assert last == f"Word keeps the contract: {len(kit.CHECKS) - 5} checks hold, 5 skipped"
    assert "ok    the loss is finite and named" in lines


@pytest.mark.parametrize("broken", slow_but(BROKEN, "NaN loss"))
def test_a_broken_method_fails_the_check_that_it_should_and_no_other(broken: str, check: Check) -> None:
    old, new, name, says = BROKEN[broken]
    assert GOOD.count(old) == 1
    code, lines = check(GOOD.replace(old, new))
    failures = [line.removeprefix("FAIL  ") for line in lines if line.startswith("FAIL  ")]
    assert code == 1 and len(failures) == 1, failures
    assert failures[0].startswith(name) and says in failures[0]
    assert re.fullmatch(r"Word fails 1 of \d+ checks(, \d+ skipped)?", lines[-1])
    assert len(lines) == 2 + len(kit.CHECKS)


@pytest.mark.slow
def test_all_failures_are_told(check: Check) -> None:
    source = GOOD.replace(LOSS, f"print(labels)\n        {LOSS}").replace("IJCV 2022.", "").replace("1024 - 512", "768")
    source = source.replace(
        "scale: float = field(default=1.0)", "scale: float = field(default=1)\n        width: int = 768"
    )
    code, lines = check(source)
    said = " ".join(line for line in lines if line.startswith("FAIL  "))
    assert code == 1 and lines[-1].startswith("Word fails 3 of ")
    for complaint in ("names no paper", "line 50 prints", "line 30 has the literal 768", "is 768, and it learns 512"):
        assert complaint in said


@pytest.mark.slow
def test_one_check_cannot_spoil_the_backbone_for_the_next(check: Check) -> None:
    backbone = load_backbone()
    clip = {name: tensor.clone() for name, tensor in backbone.clip.state_dict().items()}
    code, lines = check(GOOD.replace(*BROKEN["making it changes CLIP"][:2]))
    assert code == 1 and "ok    the loss is finite and named" in lines
    cls = registry.load("methods", "word")
    assert len(kit.check_method(cls, backbone)) == 1
    assert all((tensor == clip[name]).all() for name, tensor in backbone.clip.state_dict().items())


@pytest.mark.slow
def test_settings_and_presets_are_those_asked_for(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kit, "CHECKS", (kit.MADE,))
    quiet = GOOD.replace(
        "self.config.scale * self.ctx", "self.config.scale * self.ctx if self.config.scale < 2 else 1 / 0"
    )
    assert check(quiet)[0] == 0
    assert check(quiet, "--set", "scale=1.5")[0] == 0
    for flags in (("--preset", "loud"), ("--set", "scale=3"), ("--set", "word.scale=3")):
        code, lines = check(quiet, *flags)
        assert code == 1 and any("line 42 raised ZeroDivisionError" in line for line in lines)
    assert check(quiet, "--preset", "loud", "--set", "scale=1")[0] == 0


@pytest.mark.parametrize(
    ("source", "flags", "says"),
    [
        ("import nowhere_to_be_found", (), "word.py:1: ModuleNotFoundError: No module named 'nowhere_to_be_found'."),
        ("class Word(", (), "word.py:1: SyntaxError: "),
        ("x = 1", (), "word.py must hold one public class that subclasses Method, but holds no class."),
        (GOOD + "\n\nclass Other(Word):\n    pass\n", (), "subclasses Method, but holds Other and Word."),
        (GOOD, ("--preset", "lout"), "Unknown preset of word 'lout'. Did you mean 'loud'?"),
        (GOOD, ("--set", "scael=1"), "method 'word': Unknown key 'scael'. Did you mean 'scale'?"),
        (GOOD, ("--set", "scale=big"), "method 'word': 'scale' takes a number, not 'big'."),
        (GOOD, ("--set", "coop.scale=1"), "--set coop.scale=1: write FIELD=VALUE with a setting of word."),
        (GOOD, ("--set", "layers=5"), "layers is 5, but text_depth of backbone"),
        (GOOD.replace("field(default=1.0)", "field()"), (), "method 'word': 'scale' must be given."),
        (GOOD, ("--backbone", "mimi"), "Backbone 'mimi' names no weights; write ARCHITECTURE:TAG"),
    ],
)
def test_bad_input_is_one_sentence(source: str, flags: tuple[str, ...], says: str, check: Check) -> None:
    code, lines = check(source, *flags)
    assert code == 2 and len(lines) == 1 and says in lines[0], lines


@pytest.mark.parametrize("name", ["none.py", "folder.py", "text.txt"])
def test_what_is_no_python_file_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "text.txt").write_text(GOOD)
    assert main(["check-plugin", str(tmp_path / name)]) == 2
    assert f"There is no Python file {tmp_path / name}; check-plugin takes" in capsys.readouterr().err


DATASET = '''"""Two birds."""

from promptbench.data.dataset import Dataset, DatasetInfo, Item


class Birds(Dataset):
    info = DatasetInfo(title="Birds", classes=2)

    def read(self, split):
        return [Item("a.png", 0, "wren"), Item("b.png", 1, "robin")] if split == "train" else []

    def open(self, item):
        return None
'''


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("", "", "ok    its splits can be read"),
        ('title="Birds"', 'title=""', "FAIL  its facts are filled in: its `info` has no title; give the name"),
        ("classes=2", 'classes=2, template="a bird"', "the template 'a bird' has no place, or several"),
        ("    info = ", "    facts = ", "FAIL  its facts are filled in: it has no facts; write `info = DatasetInfo("),
        ("classes=2", "classes=3", "`info` says 3 classes, and its items have 2; correct one of them"),
        ("1, ", "2, ", "its labels are 0, 2; count them from 0, without a gap"),
        ('"robin"', '"Wren"', "the classes 0 'wren' and 1 'Wren' read the same in a prompt"),
        ("    def read", "    def reads", "skip  its splits can be read"),
    ],
)
def test_a_dataset_is_told_apart_and_checked(old: str, new: str, line: str, check: Check) -> None:
    code, lines = check(DATASET.replace(old, new) if old else DATASET)
    assert lines[0] == "The dataset Birds, data roots from PROMPTBENCH_DATA"
    assert any(line in said for said in lines[1:]), lines
    assert code == any(said.startswith("FAIL") for said in lines)


def test_a_protocol_is_told_apart(check: Check) -> None:
    source = "from promptbench.protocol import Protocol\n\n\nclass Mine(Protocol):\n    role = 'base2new'\n"
    assert check(source) == (0, ["The protocol Mine, of which nothing is checked"])
    assert check(source, "--preset", "x") == (2, ["promptbench: error: --preset x: a protocol has no presets."])


@pytest.mark.slow
def test_the_plugin_of_the_readme_passes_through_the_real_command(tmp_path: Path, tiny_name: str) -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    plugin = next(b for b in re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL) if "class TextAdapter" in b)
    (tmp_path / "text_adapter.py").write_text(plugin, encoding="utf-8")
    command = [str(Path(sys.executable).with_name("promptbench")), "check-plugin", "text_adapter.py"]
    command += ["--backbone", tiny_name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"The method TextAdapter on the backbone {tiny_name}\nok    ")
    assert "TextAdapter keeps the contract: " in done.stdout.splitlines()[-1]
    assert {path.name for path in tmp_path.iterdir()} <= {"text_adapter.py", "__pycache__"}


@pytest.mark.slow
def test_a_built_in_file_is_checked_as_what_it_is(
    capsys: pytest.CaptureFixture[str], tiny_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["check-plugin", str(REPOSITORY / "methods" / "coop.py"), "--backbone", tiny_name]) == 0
    assert capsys.readouterr().out.startswith("The method CoOp on ")
    assert main(["check-plugin", str(REPOSITORY / "datasets" / "dtd.py")]) == 0
    assert "skip  its splits can be read" in capsys.readouterr().out


def test_a_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    (tmp_path / "coop.py").write_text(GOOD)
    from promptbench.cli.commands.check_plugin import plugins_in

    with pytest.raises(UsageError, match="'coop' is already one of the methods .*; rename "):
        plugins_in(tmp_path / "coop.py")
