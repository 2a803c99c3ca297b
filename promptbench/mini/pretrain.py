"""Pre-training of the tiny CLIP: `python -m promptbench.mini.pretrain`.

The loss is CLIP's, the symmetric cross-entropy over the cosine similarities of a batch, plus linear heads that name
the attributes of an image from its embedding. The heads fade out and are thrown away; without them and without the
curriculum, plain drawings first and then everything, so small a model does not discover shape. All randomness follows
from `Schedule.seed` and the number of the step, so that an interrupted run goes on exactly where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.model import CLIP
from torch import nn
from torch.nn import functional as F

from promptbench.mini.captions import caption, grammar_phrases
from promptbench.mini.model import (
    END,
    START,
    VOCABULARY,
    CachedTokenizer,
    build,
    encode_text,
    ends_of,
    preprocess,
    save,
)
from promptbench.mini.render import render
from promptbench.mini.scene import (
    BACKGROUNDS,
    CENTRE,
    COLOUR_NAMES,
    COUNTS,
    POSITIONS,
    SIZES,
    STYLES,
    TEXTURES,
    Scene,
    pretraining_scene,
)
from promptbench.mini.shapes import DIGITS, SHAPES
from promptbench.mini.zeroshot import Probe, draw_probe

_SHARD = 1024  # images that are rendered from a stream of numbers of their own


def _shard(seed: int, number: int) -> tuple[Scene, np.ndarray]:
    generator = np.random.default_rng([seed, 0, number])
    scene = pretraining_scene(generator, _SHARD)
    return scene, render(scene, generator)


def render_pool(seed: int, shards: int, *, workers: int = 2) -> tuple[Scene, np.ndarray]:
    """Scene and images (1024 * shards, R, R, 3) uint8; every shard has its own stream of numbers."""
    with ThreadPoolExecutor(workers) as pool:
        parts = list(pool.map(lambda number: _shard(seed, number), range(shards)))
    scenes = [scene for scene, _ in parts]
    joined = {}
    for name in Scene.__dataclass_fields__:
        joined[name] = np.concatenate([getattr(scene, name) for scene in scenes])
    return Scene(**joined), np.concatenate([images for _, images in parts])


def _is_style(scene: Scene, *names: str) -> np.ndarray:
    return np.isin(scene.style, [STYLES.index(name) for name in names])


def easy_odds(scene: Scene) -> np.ndarray:
    """How likely the images (n,) are at the start: large single centred line drawings, hardly anything else."""
    odds = np.where(_is_style(scene, "sketch", "neon", "silhouette", "chalk"), 1.0, 0.0)
    odds += np.where(_is_style(scene, "clipart"), 0.12, 0.0)
    odds *= (scene.count == 1) & ~scene.full
    odds *= np.where(scene.size == SIZES.index("small"), 0.15, 1)
    odds *= np.where(scene.position == CENTRE, 1, 0.12)
    odds *= np.where(scene.texture == 0, 1, 0.3)
    odds *= np.where(np.isin(scene.background, [BACKGROUNDS.index("plain"), BACKGROUNDS.index("gradient")]), 1, 0.2)
    return odds / odds.sum()


def final_odds(scene: Scene) -> np.ndarray:
    """How likely the images (n,) are once all of them take part."""
    odds = np.where(_is_style(scene, "photo", "clipart"), 1.3, 1.0)
    odds *= np.where(_is_style(scene, "sketch"), 1.6, 1)
    odds *= np.where(np.isin(scene.background, [BACKGROUNDS.index("plain"), BACKGROUNDS.index("gradient")]), 1, 0.7)
    odds *= np.where(scene.count == 1, 1, 0.8)
    odds *= np.where(scene.size == SIZES.index("small"), 0.8, 1)
    odds *= np.where(scene.position == CENTRE, 1, 1.3)
    odds *= np.where(scene.full, 1.5, 1)
    return odds / odds.sum()


class Sampler:
    """Draws the images of a step.

    Args:
        scene: The pool.
        first: Share of the horizon before the mixture begins to change; until then a tenth comes from everything.
        last: Share of the horizon after which everything takes part.
    """

    def __init__(self, scene: Scene, *, first: float, last: float) -> None:
        self._easy = easy_odds(scene)
        self._final = final_odds(scene)
        self._first = first
        self._last = last

    def draw(self, generator: np.random.Generator, n: int, *, progress: float) -> np.ndarray:
        """Numbers (n,) of images for a step at this share of the horizon."""
        share = float(np.clip((progress - self._first) / (self._last - self._first), 0.1, 1))
        odds = share * self._final + (1 - share) * self._easy
        return generator.choice(len(odds), n, p=odds)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """All that decides the outcome of pre-training.

    Attributes:
        steps: Optimiser steps.
        horizon: Steps that the cosine of the learning rate and the shares below are laid out for.
        cooldown: Steps at the end over which the learning rate falls to zero, linearly, before the cosine would.
        batch: Pairs of image and caption per step.
        shards: Rendered images in thousands (1024).
        rate: Highest learning rate; the cosine would take it down to a fiftieth.
        warmup: Steps of linear warm-up.
        decay: Weight decay of matrices; vectors have none.
        fade: Share of the horizon after which the attribute heads count nothing.
        first: Share of the horizon before the curriculum widens.
        last: Share of the horizon after which it holds everything.
        shift: Largest shift of a batch of images in pixels.
        seed: Seed of everything.
        every: Steps between checkpoints and lines of the log.
        model: Changes to the configuration of the model.
    """

    steps: int = 3000
    horizon: int = 4400
    cooldown: int = 400
    batch: int = 128
    shards: int = 96
    rate: float = 1.2e-3
    warmup: int = 60
    decay: float = 0.05
    fade: float = 0.75
    first: float = 0.05
    last: float = 0.25
    shift: int = 2
    seed: int = 20
    every: int = 200
    model: dict[str, Any] | None = None


HEADS: dict[str, tuple[int, float]] = {
    "shape": (len(SHAPES) + len(DIGITS), 2.0),
    "colour": (len(COLOUR_NAMES), 0.4),
    "texture": (len(TEXTURES), 0.4),
    "count": (len(COUNTS) + 1, 0.3),
    "position": (len(POSITIONS), 0.3),
    "style": (len(STYLES), 0.2),
    "ground": (len(COLOUR_NAMES), 0.2),
    "background": (len(BACKGROUNDS), 0.1),
}
"""Attributes that a linear head names: how many values, and the weight of its cross-entropy."""
_SHOWN_BY_TEXTURES = ("colour", "texture", "style")
_IGNORED = -100


def head_targets(scene: Scene) -> dict[str, torch.Tensor]:
    """Attribute numbers (B,) int64 for the heads; -100 where the picture does not show the attribute."""
    targets = {name: np.array(getattr(scene, name)) for name in HEADS}
    for name in HEADS.keys() - set(_SHOWN_BY_TEXTURES):
        targets[name][scene.full] = _IGNORED
    targets["position"][scene.count != 1] = _IGNORED
    return {name: torch.from_numpy(value) for name, value in targets.items()}


class Pretraining:
    """Model, heads, optimiser and step counter of one run."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.tokenize = CachedTokenizer(open_clip.SimpleTokenizer())
        self.trained = np.unique(np.r_[self.tokenize(grammar_phrases()).ravel(), START, END])[1:]  # without padding
        self._row = np.zeros(VOCABULARY, np.int64)  # padding may point anywhere: it comes after the end
        self._row[self.trained] = np.arange(len(self.trained))
        with torch.random.fork_rng():
            torch.manual_seed(schedule.seed)
            self.model = build(vocabulary=len(self.trained), init_logit_scale=math.log(10), **(schedule.model or {}))
            width = self.model.text_projection.shape[1]
            self.heads = nn.ModuleDict({name: nn.Linear(width, k) for name, (k, _) in HEADS.items()})
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        others = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": schedule.decay},
            {"params": [*others, *self.heads.parameters()], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=schedule.rate, betas=(0.9, 0.98), eps=1e-6)
        self.step = 0

    def encode_captions(self, texts: list[str]) -> torch.Tensor:
        """Normalised text features (N, D)."""
        tokens = self.tokenize(texts)  # (N, L)
        if not np.isin(tokens[tokens > 0], self.trained).all():
            raise ValueError(f"The captions hold a token that captions.py does not list; one of them is {texts[0]!r}.")
        return encode_text(self.model, torch.from_numpy(self._row[tokens]), ends_of(tokens))

    def _rate(self) -> float:
        s = self.schedule
        cosine = 0.5 * (1 + math.cos(math.pi * self.step / s.horizon))
        ends = min(1, (self.step + 1) / s.warmup) * min(1, (s.steps - self.step) / s.cooldown)
        return s.rate * ends * (0.98 * cosine + 0.02)

    def losses(self, scene: Scene, images: np.ndarray, texts: list[str]) -> dict[str, torch.Tensor]:
        """The contrastive loss and the cross-entropy of every head, unweighted."""
        embedding = self.model.visual(preprocess(images))  # (B, D)
        text = self.encode_captions(texts)  # (B, D)
        logits = self.model.logit_scale.exp() * F.normalize(embedding, dim=-1) @ text.T  # (B, B)
        same = torch.arange(len(logits))
        losses = {"contrastive": (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2}
        for name, target in head_targets(scene).items():
            losses[name] = F.cross_entropy(self.heads[name](embedding), target, ignore_index=_IGNORED)
        return losses

    def train_step(self, pool: Scene, images: np.ndarray, sampler: Sampler) -> dict[str, float]:
        """One step; returns the losses by name."""
        s = self.schedule
        generator = np.random.default_rng([s.seed, 1, self.step])
        progress = self.step / s.horizon
        index = sampler.draw(generator, s.batch, progress=progress)
        texts = [caption(pool, i, generator) for i in index]
        shift = generator.integers(-s.shift, s.shift + 1, 2)
        losses = self.losses(pool.take(index), np.roll(images[index], shift, axis=(1, 2)), texts)
        fade = max(0.0, 1 - progress / s.fade)
        total = losses["contrastive"] + sum(fade * w * losses[name].nan_to_num() for name, (_, w) in HEADS.items())
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        self.optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=math.log(100))
        self.step += 1
        return {name: loss.item() for name, loss in losses.items()}

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs."""
        parts = {"model": self.model, "heads": self.heads, "optimizer": self.optimizer}
        saved = {name: part.state_dict() for name, part in parts.items()}
        return {"step": self.step, "schedule": asdict(self.schedule), **saved}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: If the state belongs to another schedule.
        """
        if state["schedule"] != asdict(self.schedule):
            raise ValueError("The checkpoint belongs to another schedule; give another --output or leave out --resume.")
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self.optimizer.load_state_dict(state["optimizer"])


def measure(run: Pretraining, probe: Probe) -> dict[str, float]:
    """Zero-shot accuracies in percent by name of the question."""
    run.model.eval()
    with torch.no_grad():
        accuracies = probe.accuracies(run.model.visual, run.encode_captions)
    run.model.train()
    return accuracies


def _means(losses: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of every loss over some steps, without those where it is not a number."""
    means = {}
    for name in losses[0]:
        values = [step[name] for step in losses]
        means[name] = round(float(np.nanmean(values)), 3)
    return means


def pretrain(schedule: Schedule, folder: Path, *, resume: bool = False) -> CLIP:
    """Train, and leave checkpoint, log and weights in the folder; returns the model with its compact vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.pt"
    log = folder / "pretrain.log.jsonl"
    run = Pretraining(schedule)
    lines: list[dict[str, Any]] = []
    if resume and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        lines = state.pop("lines")
        run.restore(state)
    pool, images = render_pool(schedule.seed, schedule.shards)
    sampler = Sampler(pool, first=schedule.first, last=schedule.last)
    probe = draw_probe(np.random.default_rng([schedule.seed, 2]))
    seen: list[dict[str, float]] = []
    start = time.perf_counter() - (lines[-1]["seconds"] if lines else 0)
    while run.step < schedule.steps:
        seen.append(run.train_step(pool, images, sampler))
        if run.step % schedule.every == 0 or run.step == schedule.steps:
            means = _means(seen)
            scale = round(run.model.logit_scale.exp().item(), 2)
            line = {"step": run.step, "seconds": round(time.perf_counter() - start), "scale": scale, "losses": means}
            lines.append({**line, "accuracies": measure(run, probe)})
            seen = []
            torch.save({**run.state(), "lines": lines}, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
            log.write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    save(run.model, run.trained.tolist(), folder=folder)
    return run.model


def main() -> None:
    """Pre-trains from the command line and prints the accuracies at the end as JSON."""
    parser = argparse.ArgumentParser(prog="python -m promptbench.mini.pretrain", description="Pre-train the tiny CLIP.")
    parser.add_argument("--steps", type=int, default=Schedule.steps, help="optimiser steps")
    parser.add_argument("--output", type=Path, default=Path("mini-pretraining"), help="folder for weights and log")
    parser.add_argument("--resume", action="store_true", help="go on from the folder's checkpoint")
    arguments = parser.parse_args()
    pretrain(Schedule(steps=arguments.steps), arguments.output, resume=arguments.resume)
    last = (arguments.output / "pretrain.log.jsonl").read_text().splitlines()[-1]
    print(json.dumps(json.loads(last)["accuracies"], indent=2))


if __name__ == "__main__":
    main()
