"""A training that was killed goes on from its last epoch, and ends with the same bits."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import make_fake
import pytest
import torch
from short_cases import slow_but

import promptbench as pb
from promptbench.data.batches import EpochOrder, FeatureBatches, training_batches
from promptbench.data.dataset import Dataset, open_dataset
from promptbench.method import Method
from promptbench.training import files
from promptbench.training.files import Partial, PartialFile, TrainingOutcome
from promptbench.training.fit import fit

EPOCHS = 5
RECIPE = pb.Recipe(epochs=EPOCHS, lr=0.05, batch=4, origin="ours")
BY_STEP = replace(RECIPE, epochs=0, steps=14, schedule="step", lr_end=1e-3, warmup_epochs=0)  # of 3 an epoch
OTHERS = {
    "adam": replace(RECIPE, optimizer="adam", lr=0.01),
    "adamw": replace(RECIPE, optimizer="adamw", lr=0.01, betas=(0.8, 0.95), eps=1e-4),
    "adam by steps": replace(BY_STEP, optimizer="adam", lr=0.01),
    "adamw by steps after a warm-up": replace(BY_STEP, optimizer="adamw", lr=0.01, warmup_epochs=2),
    "sgd by steps": BY_STEP,
}


class Killed(Exception):
    """Stands for SIGKILL: nothing is done about it."""


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("images") / "birds"
    make_fake.make_folder(folder)
    return open_dataset("folder", {"root": str(folder)})


@pytest.fixture(autouse=True)
def _every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTBENCH_PARTIAL_SECONDS", "0")


class Trial:
    """A training of a method; `seen` is what its steps met: images, learning rate, epoch."""

    def __init__(
        self, name: str, backbone: pb.Backbone, birds: Dataset, path: Path, augment: bool, recipe: pb.Recipe = RECIPE
    ) -> None:
        self.birds, self.backbone, self.name, self.augment, self.recipe = birds, backbone, name, augment, recipe
        self.file, self.seen, self.ends = PartialFile(path, "key of " + name), [], []

    def __call__(self, killed_at: int = 0, partial: bool = True) -> tuple[TrainingOutcome, Method]:
        """Train, killed in the step of that number."""
        settings = {"epoch_mean": 3.0} if self.name == "promptsrc" else {}
        method = pb.create_method(self.name, self.backbone, self.birds.class_names, **settings)
        items = self.birds.items("train")[:12]
        batches = training_batches(self.backbone, self.birds, items, batch=RECIPE.batch, seed=3, augment=self.augment)
        loss, on_epoch_end = method.loss, method.on_epoch_end
        self.seen, self.ends = [], []

        def watched(images: Any, labels: Any) -> Any:
            self.seen.append(images.pixels.double().sum().item())
            return loss(images, labels)

        def ended(epoch: int, epochs: int) -> None:
            self.ends.append((epoch, epochs))
            on_epoch_end(epoch, epochs)

        def progress(done: int, total: int, _: float) -> None:
            self.seen[-1] = (self.seen[-1], done, total)
            if done == killed_at:
                raise Killed

        def logger(_: int, values: Mapping[str, float]) -> None:
            self.seen[-1] = (*self.seen[-1], values["lr"], values["epoch"])

        method.loss, method.on_epoch_end = watched, ended  # type: ignore[method-assign, assignment]
        outcome = fit(
            method,
            replace(self.recipe, augment=self.augment),
            batches,
            len(batches),
            seed=3,
            progress=progress,
            logger=logger,
            partial=self.file if partial else None,
        )
        return outcome, method


@pytest.mark.parametrize(
    ("name", "augment"), slow_but([("coop", True), ("gallop", False), ("promptsrc", False)], ("coop", True))
)
def test_a_killed_training_ends_with_the_same_bits(
    name: str, augment: bool, tiny: pb.Backbone, birds: Dataset, tmp_path: Path
) -> None:
    trial = Trial(name, tiny, birds, tmp_path / "a.partial", augment)
    expected, whole = trial(partial=False)
    seen, per_epoch = trial.seen, len(trial.seen) // EPOCHS
    assert per_epoch >= 2 and len({step[3] for step in seen}) == EPOCHS  # the rate changes every epoch
    with pytest.raises(Killed):
        trial(killed_at=2 * per_epoch + 1)
    torch.manual_seed(1234)  # another process, another state
    with pytest.raises(Killed):
        trial(killed_at=4 * per_epoch)
    assert trial.seen[:-1] == seen[2 * per_epoch : 4 * per_epoch - 1]  # the step that kills logs nothing
    outcome, method = trial()
    assert trial.seen == seen[3 * per_epoch :]  # images, order, rates and epochs
    assert trial.ends == [(3, EPOCHS), (4, EPOCHS)]
    assert outcome.losses == expected.losses and len(outcome.losses) == EPOCHS
    for found in (expected, outcome):  # of all epochs, those of other processes too
        assert found.images_per_second * found.seconds == pytest.approx(RECIPE.batch * len(seen))
    last = trial.file.read()
    assert last is not None and len(last.facts["losses"]) == EPOCHS - 1 and outcome.seconds > last.facts["seconds"]
    state, wanted = method.state_dict(), whole.state_dict()
    assert state.keys() == wanted.keys() and all(torch.equal(state[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("recipe", slow_but(OTHERS.values(), OTHERS["adamw by steps after a warm-up"]), ids=OTHERS)
def test_other_optimisers_and_schedules_go_on(
    recipe: pb.Recipe, tiny: pb.Backbone, birds: Dataset, tmp_path: Path
) -> None:
    trial = Trial("coop", tiny, birds, tmp_path / "a.partial", True, recipe)
    expected, whole = trial(partial=False)
    seen, steps = trial.seen, recipe.steps or 3 * EPOCHS
    assert len(seen) == steps == seen[-1][1] and len(expected.losses) == EPOCHS  # the last may be cut short
    if recipe.schedule == "step":
        period = steps - 3 * recipe.warmup_epochs
        swings = [0.5 * (1 + math.cos(math.pi * step / period)) for step in range(period)]
        rates = [recipe.warmup_lr] * 3 * recipe.warmup_epochs
        rates += [recipe.lr_end + (recipe.lr - recipe.lr_end) * swing for swing in swings]
        assert [step[3] for step in seen] == pytest.approx(rates)
    for killed_at in (5, 12):  # in the second epoch, and in the fourth
        with pytest.raises(Killed):
            trial(killed_at=killed_at)
        torch.manual_seed(1234)
    assert trial.seen[:-1] == seen[3:11]
    note = trial.file.read()
    assert note is not None and len(note.facts["losses"]) == 3
    outcome, method = trial()
    assert trial.seen == seen[9:] and outcome.losses == expected.losses
    state, wanted = method.state_dict(), whole.state_dict()
    assert all(torch.equal(state[key], wanted[key]) for key in wanted)


def test_moments_that_are_lost_are_noticed(tiny: pb.Backbone, birds: Dataset, tmp_path: Path) -> None:
    """The test above would fail without them."""
    trial = Trial("coop", tiny, birds, tmp_path / "a.partial", True, OTHERS["adamw"])
    _, whole = trial(partial=False)
    with pytest.raises(Killed):
        trial(killed_at=5)
    note = trial.file.read()
    assert note is not None
    kept = {name for name in note.tensors if name.startswith("optimizer.")}
    assert {name.rpartition(".")[2] for name in kept} == {"step", "exp_avg", "exp_avg_sq"}
    without = {name: tensor for name, tensor in note.tensors.items() if not name.endswith("exp_avg_sq")}
    trial.file.write(Partial({**without, "optimizer.0.exp_avg_sq": torch.zeros(4, tiny.text_width)}, note.facts))
    _, method = trial()
    assert not torch.equal(method.state_dict()["ctx"], whole.state_dict()["ctx"])


def test_what_a_method_keeps_matters(tiny: pb.Backbone, birds: Dataset, tmp_path: Path, monkeypatch: Any) -> None:
    """The test above would fail without the hook: here it gives nothing."""
    trial = Trial("promptsrc", tiny, birds, tmp_path / "a.partial", False)
    kept = pb.create_method("promptsrc", tiny, birds.class_names)
    kept.on_epoch_end(0, 50)
    other = pb.create_method("promptsrc", tiny, birds.class_names, seed=1)
    other.load_training_state(kept.training_state())
    assert len(kept.training_state()) == len(list(kept.parameters()))
    assert all(torch.equal(a, kept.training_state()[name]) for name, a in other.training_state().items())
    monkeypatch.setattr(type(kept), "training_state", lambda _: {})
    with pytest.raises(Killed):
        trial(killed_at=5)
    with pytest.raises(ValueError, match="zip"):
        trial()


def test_cached_features_are_drawn_in_the_same_order(tiny: pb.Backbone, tmp_path: Path) -> None:
    features = pb.method.ImageFeatures(torch.randn(12, tiny.embed_dim, generator=torch.Generator().manual_seed(0)))
    file = PartialFile(tmp_path / "a.partial", "key")

    def run(killed_at: int, partial: PartialFile | None) -> tuple[Any, Any]:
        method = pb.create_method("coop", tiny, ["owl", "hawk", "finch"])
        batches = FeatureBatches(features, [0, 1, 2] * 4, 4, EpochOrder(12, 5))

        def progress(done: int, total: int, loss: float) -> None:
            if done == killed_at:
                raise Killed

        return fit(method, RECIPE, batches, 3, seed=1, progress=progress, partial=partial).losses, method.state_dict()

    losses, state = run(0, None)
    with pytest.raises(Killed):
        run(8, file)
    again, found = run(0, file)
    assert again == losses and all(torch.equal(found[key], state[key]) for key in state)


def test_short_trainings_leave_no_note(
    tiny: pb.Backbone, birds: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PROMPTBENCH_PARTIAL_SECONDS")
    assert files.partial_seconds() == 20
    trial = Trial("coop", tiny, birds, tmp_path / "a.partial", False)
    trial()
    assert not (tmp_path / "a.partial").exists()


@pytest.mark.parametrize(
    "damage", slow_but(["cut", "flipped", "changed", "key", "format", "shapes", "empty"], "flipped", "changed")
)
def test_notes_that_are_damaged_or_foreign_are_ignored(
    damage: str, tiny: pb.Backbone, birds: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.partial"
    trial = Trial("coop", tiny, birds, path, False)
    expected, whole = trial(partial=False)
    with pytest.raises(Killed):
        trial(killed_at=len(trial.seen) // EPOCHS + 1)
    content = path.read_bytes()
    found = trial.file.read()
    assert found is not None and len(found.facts["losses"]) == 1
    if damage == "cut":
        path.write_bytes(content[:-9])
    elif damage == "flipped":
        path.write_bytes(content[:400] + bytes([content[400] ^ 1]) + content[401:])
    elif damage == "changed":  # of a tensor, with which the file still reads
        path.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
    elif damage == "key":
        PartialFile(path, "another key").write(found)
    elif damage == "format":
        with monkeypatch.context() as patch:
            patch.setattr(files, "PARTIAL_FORMAT", "promptbench partial/99")
            trial.file.write(found)
    elif damage == "shapes":
        trial.file.write(Partial({**found.tensors, "method.ctx": torch.zeros(1)}, found.facts))
    else:
        path.write_bytes(b"")
    outcome, method = trial()
    assert outcome.losses == expected.losses and len(trial.ends) == EPOCHS  # from the beginning
    assert all(torch.equal(tensor, whole.state_dict()[key]) for key, tensor in method.state_dict().items())


def test_a_note_that_cannot_be_written_leaves_the_last_one(
    tiny: pb.Backbone, birds: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = Trial("coop", tiny, birds, tmp_path / "a.partial", False)
    expected, _ = trial(partial=False)
    with pytest.raises(Killed):
        trial(killed_at=len(trial.seen) // EPOCHS * 2 + 1)
    before = (tmp_path / "a.partial").read_bytes()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr("os.fsync", full)
        trial()
    assert (tmp_path / "a.partial").read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    assert trial()[0].losses == expected.losses


def test_seconds_of_all_processes_count(tiny: pb.Backbone, birds: Dataset, tmp_path: Path) -> None:
    trial = Trial("coop", tiny, birds, tmp_path / "a.partial", False)
    with pytest.raises(Killed):
        trial(killed_at=len(birds.items("train")[:12]) // RECIPE.batch + 1)
    found = trial.file.read()
    assert found is not None
    trial.file.write(Partial(found.tensors, {**found.facts, "seconds": 1000.0}))
    assert 1000 < trial()[0].seconds < 1500


def test_a_note_is_safetensors_and_json(tmp_path: Path) -> None:
    tensors = {"method.ctx": torch.tensor([1.5, -0.0]), "generator.cpu": torch.get_rng_state()}
    facts = {"losses": [{"ce": 0.1}], "images": 8, "seconds": 1.25}
    file = PartialFile(tmp_path / "a.partial", "key")
    assert file.read() is None
    file.write(Partial(tensors, facts))
    content = file.path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    assert json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["facts"]) == facts
    found = file.read()
    assert found is not None and found.facts == facts and found.part("method").keys() == {"ctx"}
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in tensors.items())
    assert b"pickle" not in content
    file.remove()
    file.remove()
    assert file.read() is None


def test_a_note_holds_tensors_of_every_type(tmp_path: Path) -> None:
    """Masks, too, which lie behind all others in a safetensors file, and so behind its checksum."""
    types = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16)
    tensors = {f"kept.{kind}": torch.arange(3).to(kind) for kind in (*types, torch.int8, torch.uint8)}
    tensors |= {
        "kept.zz": torch.tensor([True, False, True]),
        "kept.one": torch.tensor(2.5),
        "kept.none": torch.zeros(0, 4),
    }
    file = PartialFile(tmp_path / "a.partial", "key")
    file.write(Partial(tensors, {"losses": []}))
    found = file.read()
    assert found is not None and found.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found.tensors[name].dtype == tensor.dtype and torch.equal(found.tensors[name], tensor)
    with pytest.raises(TypeError, match="kept.complex is of the type torch.complex64"):
        file.write(Partial({"kept.complex": torch.zeros(1, dtype=torch.complex64)}, {}))
