"""The shipped tiny CLIP: digest, vocabulary, truncated text, and what it can tell apart."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.model import CLIP
from torch.nn import functional as F

from promptbench.mini import model as mini_model
from promptbench.mini.model import encode_text, ends_of, load, preprocess
from promptbench.mini.sets import CORE, EXTRA, GENERIC_TEMPLATE, SETS
from promptbench.mini.zeroshot import auroc, base_new_all

Loaded = tuple[CLIP, open_clip.SimpleTokenizer, frozenset[int]]


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load()


def test_the_weights_fit_in_four_mebibytes() -> None:
    assert mini_model.WEIGHTS_FILE.stat().st_size <= 4 * 2**20


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    for file in (mini_model.WEIGHTS_FILE, mini_model.DIGEST_FILE):
        shutil.copy(file, tmp_path)
    damaged = bytearray((tmp_path / "weights.safetensors").read_bytes())
    damaged[-1] ^= 1
    (tmp_path / "weights.safetensors").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"SHA-256 .* the file is damaged or was replaced"):
        load(tmp_path)


@pytest.mark.slow
def test_loading_twice_gives_the_same_model(loaded: Loaded) -> None:
    again = load()[0].state_dict()
    assert all(torch.equal(value, again[name]) for name, value in loaded[0].state_dict().items())


def test_every_class_name_and_template_is_made_of_trained_tokens(loaded: Loaded) -> None:
    _, tokenizer, trained = loaded
    for name in (*CORE, *EXTRA):
        for template in (GENERIC_TEMPLATE, SETS[name].template):
            tokens = tokenizer([template.format(c) for c in SETS[name].class_names])
            assert set(tokens[tokens > 0].tolist()) <= trained, name
    assert 0 not in trained and len(trained) < 1000


@torch.no_grad()
def test_open_clips_factory_builds_the_same_model(loaded: Loaded) -> None:
    clip, tokenizer, _ = loaded
    open_clip.add_model_config(mini_model.CONFIG_FILE)
    theirs = open_clip.create_model(mini_model.CONFIG_FILE.stem, load_weights=False)
    theirs.load_state_dict(clip.state_dict())
    images = preprocess(np.random.default_rng(0).integers(0, 256, (2, 48, 48, 3)).astype(np.uint8))
    texts = tokenizer(["a photo of a star.", "two leaves"])
    assert torch.equal(open_clip.get_tokenizer(mini_model.CONFIG_FILE.stem)(["two leaves"]), texts[1:])
    assert torch.equal(theirs.eval().encode_image(images), clip.encode_image(images))
    assert torch.equal(theirs.encode_text(texts), clip.encode_text(texts))


def test_loading_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    load()
    assert torch.equal(before, torch.get_rng_state())


@torch.no_grad()
def test_cutting_text_at_its_end_changes_nothing(loaded: Loaded) -> None:
    clip, tokenizer, _ = loaded
    tokens = tokenizer(["a photo of a red star.", "two leaves"])
    short = tokens[:, :10]
    theirs = F.normalize(clip.encode_text(tokens), dim=-1)
    assert torch.allclose(encode_text(clip, short, ends_of(short.numpy())), theirs, atol=1e-5)


def test_accuracies_of_halves_count_only_their_own_classes() -> None:
    texts = torch.eye(3)
    features = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0], [3.0, 0.0, 1.0]])
    got = base_new_all(features, texts, np.array([0, 1, 2]))
    assert got == {"base": 100.0, "new": 100.0, "all": 33.3}  # by hand: images 0 and 2 go to the other half's class


def test_auroc_counts_pairs() -> None:
    # By hand: of the 6 pairs, 4 in order, 1 tie, 1 reversed.
    assert auroc(np.array([3.0, 2.0]), np.array([1.0, 2.0, 2.5])) == pytest.approx(100 * 4.5 / 6)
