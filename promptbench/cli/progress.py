"""How runs look while they go: a live bar in a terminal, one line per finished run elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining
from rich.table import Column
from rich.text import Text

from promptbench.cli.text import columns, reason, running_lines, summary
from promptbench.results.result import predictions_path, read_result, result_path
from promptbench.sweep.status import Standing, since

if TYPE_CHECKING:
    from promptbench.results.result import Result
    from promptbench.runs.plan import Run

REFRESH = 0.1  # seconds between updates of the bar


@contextmanager
def reporter(total: int | None = None, skipped: int = 0) -> Iterator[Reporter]:
    """A listener for `run_all`; the bars vanish at the end, the lines of finished runs stay.

    Args:
        total: Runs of the call; None where it is not known yet.
        skipped: Those of them that are finished.
    """
    console = Console(file=sys.stderr, highlight=False)
    if skipped:
        console.print(f"{skipped} of {total} runs are finished already and are skipped")
    bars = Progress(
        TextColumn("{task.description}", table_column=Column(min_width=32)),  # so that nothing jumps from run to run
        BarColumn(bar_width=24),
        MofNCompleteColumn(table_column=Column(min_width=9)),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        Remaining(),
        TextColumn("{task.fields[loss]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bars:
        yield Reporter(console, bars, total, skipped)


class Reporter:
    """Draws what `run_all` reports."""

    def __init__(self, console: Console, bars: Progress, total: int | None, skipped: int) -> None:
        self.console, self.bars, self.total, self.done = console, bars, total, skipped
        self.overall = bars.add_task("all runs", total=total, completed=skipped, loss="")
        self.current: TaskID | None = None
        self.began = self.drawn = 0.0

    def started(self, run: Run) -> None:
        """A run begins: its own bar counts training steps."""
        self.began = time.perf_counter()
        self.current = self.bars.add_task(title(run), total=None, loss="")

    def step(self, done: int, total: int, loss: float) -> None:
        """A training step is done."""
        now = time.perf_counter()
        if self.current is not None and (now - self.drawn > REFRESH or done == total):
            self.drawn = now
            self.bars.update(self.current, completed=done, total=total, loss=f"loss {loss:.3f}")

    def finished(self, run: Run, result: Result) -> None:
        """A run is done."""
        self._close(f"{title(run)}: {figures(result)}")

    def failed(self, run: Run, reason: str) -> None:
        """A run failed."""
        self._close(f"{title(run)}: FAILED: {reason}")

    def elsewhere(self, run: Run) -> None:
        """Another process has done a run."""
        self.done += 1
        self.bars.update(self.overall, completed=self.done)

    def _close(self, line: str) -> None:
        self.done += 1
        seconds = time.perf_counter() - self.began
        count = self.done if self.total is None else f"{self.done}/{self.total}"
        self.console.print(f"[{count}] {line} ({seconds:.1f} s)", markup=False, soft_wrap=True)
        if self.current is not None:
            self.bars.remove_task(self.current)
        self.bars.update(self.overall, completed=self.done)


class Overview:
    """Several runs at once: who is at what in a terminal, and a line for each that ends.

    Args:
        runs: Those to do.
        output: The output folder.
        total: Runs of the call.
    """

    def __init__(self, runs: Sequence[Run], output: Path, total: int) -> None:
        self.console = Console(file=sys.stderr, highlight=False)
        self.open = {run.spec.name: run for run in runs}
        self.half = {run.spec.name for run in runs if result_path(output, run.spec).exists()}  # without predictions
        self.output, self.total, self.began = output, total, time.time()
        self.live = Live(console=self.console, transient=True, auto_refresh=False)
        if total > len(runs):
            self.console.print(f"{total - len(runs)} of {total} runs are finished already and are skipped")

    def __enter__(self) -> Overview:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def update(self, standing: Standing) -> None:
        """Show how the runs stand."""
        for name, run in list(self.open.items()):
            if name in standing.done and (name not in self.half or predictions_path(self.output, run.spec).exists()):
                result = read_result(result_path(self.output, run.spec))
                seconds = sum(result.cost.get(key) or 0.0 for key in ("train_seconds", "eval_seconds"))
                self._close(name, f"{figures(result)} ({seconds:.1f} s)")
            elif name in standing.failed and since(standing.failed[name], self.began):
                self._close(name, f"FAILED: {reason(standing.failed[name])}")
        if self.console.is_terminal:
            lines = columns(running_lines(standing)) if standing.running else ""
            self.live.update(Text(f"{lines}\n{summary(standing)}".strip()), refresh=True)

    def _close(self, name: str, line: str) -> None:
        run = self.open.pop(name)
        count = f"{self.total - len(self.open)}/{self.total}"
        self.console.print(f"[{count}] {title(run)}: {line}", markup=False, soft_wrap=True)


def figures(result: Result) -> str:
    """`base 98.1  new 95.0  h 96.5  loss 0.123`."""
    shown = [f"{name.removesuffix('/accuracy')} {value:.1f}" for name, value in headline(result).items()]
    if result.losses:
        shown.append(f"loss {sum(result.losses[-1].values()):.3f}")
    return "  ".join(shown)


def headline(result: Result) -> dict[str, float]:
    """The accuracies of a run, and what has no longer name."""
    return {name: value for name, value in result.metrics.items() if "/" not in name or name.endswith("/accuracy")}


def title(run: Run) -> str:
    """`coop mini_shapes seed 1`."""
    data, train = run.spec.seeds
    return f"{run.spec.label} {run.spec.dataset} seed {data if data == train else f'{data}/{train}'}"
