"""The processes that train one run together: this one, and others that it starts for as long as the training lasts.

Another process is told what run it is on its standard input, which stays open as long as the first one lives. It reads
the same images, begins with the same tensors, says so, and takes its share of each batch. Only the first process holds
claims, notes how the training stands, and stores what was learned.
"""

from __future__ import annotations

import contextlib
import io
import json
import operator
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from promptbench import registry
from promptbench.bench import Bench
from promptbench.config import UsageError
from promptbench.ddp import Failed
from promptbench.planning import Run
from promptbench.resuming import Partial, PartialFile
from promptbench.sharing import WHOLE, Share
from promptbench.work import TrainingDiverged

END = 10.0  # seconds that a process which failed has to say why
OF_FILES = "promptbench_plugin."  # what `registry` calls the modules of plugin files


@dataclass(frozen=True)
class Errand:
    """What another process is told.

    Attributes:
        bench: It opens datasets and backbone itself.
        partial: The file with which the training goes on, and its key.
    """

    bench: Bench
    run: Run
    share: Share
    partial: tuple[Path, str]


@contextmanager
def team(bench: Bench, run: Run, partial: tuple[Path, str]) -> Iterator[Share]:
    """Within it, the other processes of a run's training are ready; gives the part of this one.

    Raises:
        UsageError, TrainingDiverged, RuntimeError: What ended another process.
    """
    if run.spec.devices == 1:
        yield WHOLE
        return
    with tempfile.TemporaryDirectory(prefix="promptbench-") as folder, contextlib.ExitStack() as stack:
        shares = [Share(rank, run.spec.devices, f"{folder}/meeting") for rank in range(run.spec.devices)]
        others = []
        for share in shares[1:]:
            device = f"cuda:{share.rank}" if run.spec.device == "cuda" else run.spec.device
            own = replace(bench, device=device, _datasets={})
            others.append(stack.enter_context(Rank(Errand(own, run, share, partial))))
        for other in others:
            other.wait_until_ready()
        try:
            yield shares[0]
        except (Failed, RuntimeError) as error:  # where one is gone, the exchange of gradients fails here
            if isinstance(error, TrainingDiverged):
                raise
            for other in others:
                other.raise_its_error(error)
            raise


class ReadOnly(PartialFile):
    """Where a training goes on from; the first process notes how it stands."""

    def write(self, partial: Partial) -> None: ...


class Rank:
    """Another process of a training."""

    def __init__(self, errand: Errand) -> None:
        self.errand = errand
        self.said = tempfile.TemporaryFile()  # noqa: SIM115 - it is read when the process has ended

    def __enter__(self) -> Rank:
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from promptbench.ranks import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            start_new_session=True,  # Ctrl-C reaches it through the first process alone
        )
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then it says why
            self.process.stdin.write(pickled(registry.added()) + pickled(self.errand))
            self.process.stdin.flush()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.said):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()

    def wait_until_ready(self) -> None:
        """Until it has the images and the method."""
        answer = self.answer()
        if answer != {"ready": True}:
            self.fail(answer, None)

    def raise_its_error(self, cause: BaseException) -> None:
        """Raise what ended it, if it has ended by itself."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            if self.process.wait(timeout=END):
                self.fail(self.answer(), cause)

    def answer(self) -> Mapping[str, Any]:
        """The next thing that it says; {} where it ended without."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found: Mapping[str, Any] = json.loads(line) if line else {}
        return found

    def fail(self, answer: Mapping[str, Any], cause: BaseException | None) -> None:
        """Raise what it says, unless that is only that another failed."""
        kind, message = answer.get("kind"), answer.get("message", "")
        if kind == Failed.__name__:
            return
        if kind == TrainingDiverged.__name__:
            raise TrainingDiverged.again(message, answer["where"]) from cause
        if kind == UsageError.__name__:
            raise UsageError(message) from cause
        self.said.seek(0)
        words = message or self.said.read().decode(errors="replace")[-2000:].strip()
        code = self.process.wait()
        raise RuntimeError(
            f"process {self.errand.share.rank + 1} of {self.errand.share.of} of this training ended with exit code "
            f"{code}: {f'{kind}: ' if kind else ''}{words}"
        ) from cause


class _Pickler(pickle.Pickler):
    """Also of classes that were made in plugin files, which belong to no package."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, type) and value.__module__.startswith(OF_FILES):
            return _class_of_file, (value.__module__, value.__qualname__)
        return NotImplemented


def pickled(value: object) -> bytes:
    """For another process."""
    buffer = io.BytesIO()
    _Pickler(buffer).dump(value)
    return buffer.getvalue()


def _class_of_file(module: str, name: str) -> Any:
    return operator.attrgetter(name)(sys.modules[module])


def serve() -> None:
    """Another process of a training: what to do comes on stdin, what happens is said on stdout."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed
    try:
        for kind, path in pickle.load(sys.stdin.buffer):  # from the first process' memory, never from a file
            registry.load(kind, registry.add_file(path, kind))  # classes of the run are made there
        errand: Errand = pickle.load(sys.stdin.buffer)
        threading.Thread(target=_follow_first, daemon=True).start()
        work(errand, answers)
    except BaseException as error:
        told = {"kind": type(error).__name__, "message": str(error), "where": getattr(error, "where", {})}
        print(json.dumps(told), file=answers, flush=True)
        os._exit(1)  # whoever waits for this process learns it now
    os._exit(0)


def work(errand: Errand, answers: IO[str]) -> None:
    """Train with the others."""
    import torch

    from promptbench.execution import prepared, train_method

    if errand.bench.device.startswith("cuda"):
        torch.cuda.set_device(errand.bench.device)
    train, method = prepared(errand.bench, errand.run)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    train_method(errand.bench, errand.run, method, train, ReadOnly(*errand.partial), share=errand.share)


def _follow_first() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 1024):  # not through sys.stdin, whose lock a thread may not hold when Python ends
            pass
    os._exit(1)
