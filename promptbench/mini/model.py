"""The tiny CLIP: open_clip's own model, built from the config `mini-clip.json`, with weights that ship in the package.

The weights file holds 16-bit floats and, of the token embedding, only the rows that pre-training has seen. The other
rows come from a frozen stream of numbers, scaled to the spread of the trained ones. Token numbers are those of
open_clip's tokenizer, made faster: every word is encoded once.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.model import CLIP
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors
from torch.nn import functional as F

START, END = 49406, 49407
"""Numbers of the tokens before and after a text."""
VOCABULARY = 49408
_WORD = re.compile(r"[a-z]+|[0-9]|[^\sa-z0-9]+")


class CachedTokenizer:
    """Encodes texts word by word with open_clip's own byte pair encoding and remembers the words.

    Args:
        tokenizer: open_clip's `SimpleTokenizer`.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._words: dict[str, list[int]] = {}

    def _row(self, text: str) -> list[int]:
        """The token numbers of one text."""
        row = [START]
        for word in _WORD.findall(text.lower()):
            if word not in self._words:
                self._words[word] = self._tokenizer.encode(word)
            row += self._words[word]
        return [*row, END]

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Token numbers (N, L) int64 of ASCII texts without contractions, padded with 0 to the longest of them."""
        rows = [self._row(text) for text in texts]
        out = np.zeros((len(rows), max(map(len, rows))), np.int64)
        for line, row in zip(out, rows, strict=True):
            line[: len(row)] = row
        return out


CONFIG_FILE = Path(__file__).with_name("mini-clip.json")
WEIGHTS_FILE = Path(__file__).with_name("weights.safetensors")
DIGEST_FILE = Path(__file__).with_name("weights.json")
_EMBEDDING = "token_embedding.weight"
_ROWS = "trained_tokens"
_MASK = "attn_mask"  # a constant of open_clip's text tower


def build(*, vocabulary: int = VOCABULARY, **changes: Any) -> CLIP:
    """A freshly initialised tiny CLIP; pre-training shrinks the vocabulary to the words it uses.

    Args:
        vocabulary: Rows of the token embedding.
        changes: Further arguments of open_clip's `CLIP` that replace those of the file.
    """
    config = json.loads(CONFIG_FILE.read_text())
    config["text_cfg"]["vocab_size"] = vocabulary
    return CLIP(**{**config, **changes})


def preprocess(images: np.ndarray) -> torch.Tensor:
    """Images (B, R, R, 3) uint8 as the model takes them: (B, 3, R, R) float32, normalised as in CLIP."""
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN)[:, None, None]
    std = torch.tensor(open_clip.OPENAI_DATASET_STD)[:, None, None]
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    return (pixels - mean) / std


def encode_text(model: CLIP, tokens: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Normalised text features (N, D) of tokens (N, L) that end at `ends` (N,); L may be less than the model's 77.

    Attention is causal, so nothing after the end of a text matters and cutting there changes nothing.
    """
    length = tokens.shape[1]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]  # (N, L, d)
    x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
    x = model.ln_final(x)[torch.arange(len(x)), ends]  # (N, d)
    return F.normalize(x @ model.text_projection, dim=-1)


def ends_of(tokens: np.ndarray) -> torch.Tensor:
    """Place of the end token in each row of tokens (N, L)."""
    return torch.from_numpy((tokens == END).argmax(axis=1))


def save(model: CLIP, trained: Sequence[int], *, folder: Path) -> Path:
    """Write the weights of a model with one embedding row per trained token, and their digest beside them."""
    state = {k: v.detach().half().numpy() for k, v in model.state_dict().items() if k != _MASK}
    data = save_tensors({**state, _ROWS: np.asarray(trained, np.int32)})
    path = folder / WEIGHTS_FILE.name
    path.write_bytes(data)
    (folder / DIGEST_FILE.name).write_text(json.dumps({"sha256": hashlib.sha256(data).hexdigest()}) + "\n")
    return path


def _checked(path: Path, digest_file: Path) -> bytes:
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    expected = json.loads(digest_file.read_text())["sha256"]
    if found != expected:
        raise ValueError(
            f"{path} has SHA-256 {found}, but {digest_file.name} says {expected}; the file is damaged or was replaced. "
            f"Reinstall promptbench; `python -m promptbench.mini.pretrain` makes such files from scratch."
        )
    return data


def _expand(rows: np.ndarray, trained: np.ndarray) -> np.ndarray:
    """The embedding of the whole vocabulary (49408, d) from its trained rows."""
    stream = np.random.RandomState(0)  # its numbers never change between versions of numpy
    full = stream.standard_normal((VOCABULARY, rows.shape[1])).astype(np.float32) * rows.std()
    full[trained] = rows
    return full


def load(folder: Path = WEIGHTS_FILE.parent) -> tuple[CLIP, open_clip.SimpleTokenizer, frozenset[int]]:
    """The tiny CLIP in evaluation mode, its tokenizer, and the numbers of the tokens that pre-training has seen.

    Text with other tokens meets embeddings that were never trained.

    Raises:
        ValueError: If the weights differ from their recorded SHA-256.
    """
    tensors = load_tensors(_checked(folder / WEIGHTS_FILE.name, folder / DIGEST_FILE.name))
    trained = tensors.pop(_ROWS)
    state = {name: torch.from_numpy(value.astype(np.float32)) for name, value in tensors.items()}
    state[_EMBEDDING] = torch.from_numpy(_expand(state[_EMBEDDING].numpy(), trained))
    with torch.random.fork_rng(devices=[]):  # the numbers it is initialised with are overwritten
        model = build()
    missing, unexpected = model.load_state_dict(state, strict=False)
    if set(missing) - {_MASK} or unexpected:
        raise ValueError(f"{folder / WEIGHTS_FILE.name} does not fit {CONFIG_FILE.name}: {missing}, {unexpected}.")
    return model.eval(), open_clip.SimpleTokenizer(), frozenset(trained.tolist())
