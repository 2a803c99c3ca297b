"""Pre-training: resumable, deterministic, and its pieces."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from promptbench.mini import pretrain as pretraining
from promptbench.mini.pretrain import Sampler, Schedule, easy_odds, head_targets, pretrain, render_pool
from promptbench.mini.scene import STYLES, pretraining_scene
from promptbench.mini.zeroshot import Probe

_TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 48, "layers": 1, "width": 32, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 1000, "width": 32, "heads": 1, "layers": 1},
}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Schedule:
    monkeypatch.setattr(pretraining, "draw_probe", lambda generator: Probe({}))
    monkeypatch.setattr(pretraining, "_SHARD", 64)
    return Schedule(steps=6, horizon=8, cooldown=2, batch=16, shards=1, warmup=2, every=3, model=_TINY)


class _Interrupted(Exception):
    pass


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(
    tiny: Schedule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = pretrain(tiny, tmp_path / "straight").state_dict()
    step = pretraining.Pretraining.train_step

    def failing(run: pretraining.Pretraining, *arguments: object) -> dict[str, float]:
        if run.step == 4:
            raise _Interrupted
        return step(run, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(_Interrupted):
        patch.setattr(pretraining.Pretraining, "train_step", failing)
        pretrain(tiny, tmp_path / "cut")
    resumed = pretrain(tiny, tmp_path / "cut", resume=True).state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in straight.items())
    files = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("straight", "cut")]
    assert files[0] == files[1]
    assert [json.loads(line)["step"] for line in (tmp_path / "cut/pretrain.log.jsonl").read_text().splitlines()] == [
        3,
        6,
    ]


def test_a_checkpoint_of_another_schedule_is_refused(tiny: Schedule, tmp_path: Path) -> None:
    pretrain(tiny, tmp_path)
    with pytest.raises(ValueError, match="another schedule"):
        pretrain(replace(tiny, steps=7), tmp_path, resume=True)


def test_pre_training_leaves_the_global_generator_alone(tiny: Schedule) -> None:
    before = torch.get_rng_state()
    pretraining.Pretraining(tiny)
    assert torch.equal(before, torch.get_rng_state())


def test_shards_do_not_depend_on_the_number_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretraining, "_SHARD", 64)
    one, two = render_pool(3, 2, workers=1), render_pool(3, 2, workers=2)
    assert np.array_equal(one[1], two[1]) and np.array_equal(one[0].shape, two[0].shape)


def test_the_curriculum_begins_with_line_drawings() -> None:
    scene = pretraining_scene(np.random.default_rng(0), 5000)
    assert easy_odds(scene)[scene.style == STYLES.index("photo")].max() == 0
    sampler = Sampler(scene, first=0.1, last=0.5)
    photos = [
        (scene.style[sampler.draw(np.random.default_rng(1), 2000, progress=p)] == STYLES.index("photo")).mean()
        for p in (0.0, 0.3, 0.5)
    ]
    assert photos[0] < 0.1 < photos[1] < photos[2]


def test_heads_ignore_what_a_picture_does_not_show() -> None:
    scene = pretraining_scene(np.random.default_rng(0), 500)
    targets = head_targets(scene)
    full = torch.from_numpy(scene.full)
    assert (targets["shape"][full] == -100).all() and (targets["texture"][full] >= 0).all()
    assert (targets["position"][torch.from_numpy(scene.count > 1)] == -100).all()
    assert (targets["shape"][~full] >= 0).all()
