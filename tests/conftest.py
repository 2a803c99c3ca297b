"""What all tests share: a tiny random CLIP, one rendered-image cache, one thread."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import make_fake
import pytest
import torch
from shared_paths import TINY

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session", autouse=True)
def _quiet_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One thread, and a cache that is made once, shared by parallel workers, and thrown away."""
    torch.set_num_threads(1)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell has started the tests in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    parallel = "PYTEST_XDIST_WORKER" in os.environ
    cache = tmp_path_factory.getbasetemp().parent / "cache" if parallel else tmp_path_factory.mktemp("cache")
    before = {name: os.environ.get(name) for name in ("PROMPTBENCH_CACHE", "PROMPTBENCH_DATA")}
    os.environ["PROMPTBENCH_CACHE"] = str(cache)
    os.environ.pop("PROMPTBENCH_DATA", None)
    yield
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@pytest.fixture(scope="session", autouse=True)
def _one_after_another() -> Iterator[None]:
    """Where nothing is said of `--jobs`, runs are done in the process of the test, which may have changed something."""
    from promptbench.sweep import loop

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(loop, "room_here", lambda runs, device: 1)
        yield


@pytest.fixture(scope="session")
def tiny_name() -> str:
    """Name of the tiny random CLIP, as `--backbone` takes it."""
    return TINY


@pytest.fixture(scope="session")
def tiny_as_loaded(tiny_name: str) -> Any:
    """The tiny random CLIP: real tokenizer, real blocks, no download. No test gets it itself."""
    from promptbench.clip.load import load_backbone

    return load_backbone(tiny_name)


@pytest.fixture
def tiny(tiny_as_loaded: Any) -> Any:
    """A copy of the tiny random CLIP for one test; the tokenizer, which no test changes, takes longest to make."""
    return deepcopy(tiny_as_loaded, {id(tiny_as_loaded.tokenizer): tiny_as_loaded.tokenizer})


@pytest.fixture
def no_plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Plugins that a test adds are forgotten after it, and those of other tests are not there."""
    from promptbench import registry

    monkeypatch.setattr(registry, "_files", {kind: {} for kind in ("methods", "datasets", "protocols")})
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("promptbench_plugin."):
            del sys.modules[name]


@pytest.fixture
def plugin_file(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], type[Any]]:
    """Makes a file with a method known for one test, as `--plugin` does, and returns its class."""
    from promptbench import registry

    monkeypatch.setattr(registry, "_files", {kind: dict(files) for kind, files in registry._files.items()})
    return lambda path: registry.load("methods", registry.add_file(path))


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's own images: three classes of ten, the first two of them base classes."""
    folder = tmp_path_factory.mktemp("images") / "birds"
    make_fake.make_folder(folder)
    return folder


class Silence:
    """A listener and tracker that says nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


@pytest.fixture(scope="session")
def carry_out() -> Callable[[Any, Any], Any]:
    """Does one planned run, unseen, and returns its result."""
    from promptbench.runs.listener import Work
    from promptbench.runs.run import execute
    from promptbench.storage.claims import Claims

    def do(session: Any, run: Any) -> Any:
        silent: Any = Silence()
        with Claims(session.output / "claims") as claims:
            claim = claims.take(run.spec.digest, {})
            assert claim is not None
            with claim:
                return execute(session, run, Work(silent, silent, claims, claim))

    return do
