"""How runs look while they go, a live bar in a terminal and one line per finished run elsewhere, and at their end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from typing import IO, TYPE_CHECKING, cast

from promptbench.cli.flags import OUTPUT, PROTOCOL
from promptbench.cli.text import columns, reason, running_lines, summary
from promptbench.experiment import RunsFailed
from promptbench.protocol import Protocol, digits_of
from promptbench.registry import load
from promptbench.results.result import find_predictions, read_result, result_path
from promptbench.runs.listener import Quiet, Standing
from promptbench.sweep.status import since

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.progress import Progress, TaskID

    from promptbench.results.result import Result
    from promptbench.runs.plan import Run
    from promptbench.show.tables.table import Table
    from promptbench.suite import Suite

REFRESH = 0.1  # seconds between updates of the bar
LATEST = "latest"  # how commands are told of the youngest result


class Display:
    """Draws the runs of a call; see `Listener`. Bars vanish at the end, the lines of finished runs stay."""

    def __init__(self) -> None:
        self.console: Console
        self.bars: Progress | None = None  # of runs that go one after another
        self.live: Live | None = None  # of runs that others do
        self.runs: dict[str, Run] = {}  # that have not ended
        self.half: set[str] = set()  # those of them that only lack predictions
        self.total: int | None = None
        self.output = Path()
        self.done = 0
        self.began = self.run_began = self.drawn = 0.0
        self.overall: TaskID | None = None
        self.current: TaskID | None = None

    def begins(self, todo: Sequence[Run], total: int | None, output: Path) -> None:
        """A call begins."""
        from rich.console import Console  # nothing of it is needed where every run is finished

        self.console = Console(file=cast(IO[str], Quiet(sys.stderr)), highlight=False)
        self.runs = {run.spec.name: run for run in todo}
        self.half = {run.spec.name for run in todo if result_path(output, run.spec).exists()}
        self.done = 0 if total is None else total - len(todo)
        self.total, self.output, self.began = total, output, time.time()
        if self.done:
            self.console.print(f"{self.done} of {total} runs are finished already and are skipped")

    def ends(self) -> None:
        """Nothing more comes."""
        for drawing in (self.bars, self.live):
            if drawing is not None:
                drawing.stop()
        self.bars = self.live = self.overall = self.current = None

    def started(self, run: Run) -> None:
        """A run begins: its own bar counts training steps."""
        self.run_began = time.perf_counter()
        if self.bars is None and drawable(self.console):
            self.bars = bars_of(self.console)
            self.bars.start()
            self.overall = self.bars.add_task("all runs", total=self.total, completed=self.done, loss="")
        if self.bars is not None:
            self.current = self.bars.add_task(title(run), total=None, loss="")

    def step(self, done: int, total: int, loss: float) -> None:
        """A training step is done."""
        now = time.perf_counter()
        if self.bars is not None and self.current is not None and (now - self.drawn > REFRESH or done == total):
            self.drawn = now
            self.bars.update(self.current, completed=done, total=total, loss=f"loss {loss:.3f}")

    def finished(self, run: Run, result: Result) -> None:
        """A run is done."""
        self.close(run, f"{figures(result)} ({time.perf_counter() - self.run_began:.1f} s)")

    def failed(self, run: Run, reason: str) -> None:
        """A run failed."""
        self.close(run, f"FAILED: {reason} ({time.perf_counter() - self.run_began:.1f} s)")

    def elsewhere(self, run: Run) -> None:
        """Another process has done a run."""
        self.count()

    def stands(self, standing: Standing) -> None:
        """Who is at what, and a line for each run that has ended."""
        for name, run in list(self.runs.items()):
            if name in standing.done and (name not in self.half or find_predictions(self.output, run.spec)):
                result = read_result(result_path(self.output, run.spec))
                seconds = sum(result.cost.get(key) or 0.0 for key in ("train_seconds", "eval_seconds"))
                self.close(run, f"{figures(result)} ({seconds:.1f} s)")
            elif name in standing.failed and since(standing.failed[name], self.began):
                self.close(run, f"FAILED: {reason(standing.failed[name])}")
        if drawable(self.console):
            lines = columns(running_lines(standing)) if standing.running else ""
            self.draw(f"{lines}\n{summary(standing)}".strip())

    def draw(self, text: str) -> None:
        """A text in the place of the one before."""
        from rich.live import Live
        from rich.text import Text

        if self.live is None:
            self.live = Live(console=self.console, transient=True, auto_refresh=False)
            self.live.start()
        self.live.update(Text(text), refresh=True)

    def close(self, run: Run, line: str) -> None:
        """A line that stays, for a run that ended."""
        self.runs.pop(run.spec.name, None)
        self.count()
        count = self.done if self.total is None else f"{self.done}/{self.total}"
        self.console.print(f"[{count}] {title(run)}: {line}", markup=False, soft_wrap=True)
        if self.bars is not None and self.current is not None:
            self.bars.remove_task(self.current)
            self.current = None

    def count(self) -> None:
        """One run more has ended."""
        self.done += 1
        if self.bars is not None and self.overall is not None:
            self.bars.update(self.overall, completed=self.done)


def print_results(
    results_of: Callable[[], list[Result]],
    suite: Suite,
    output: Path,
    methods: Sequence[str] = (),
    datasets: Sequence[str] = (),
) -> int:
    """Print the tables of the results of a call, how many runs failed, and what to do next; 1 where any failed.

    Args:
        results_of: Gives them; raises `RunsFailed` where some are missing.
        suite: Of the call.
        output: The folder with the results, as it was named.
        methods: In the order that tables show them; the suite's if there are none.
        datasets: In the order that tables show them; the suite's if there are none.
    """
    failed = left = tried = 0
    try:
        results = results_of()
    except RunsFailed as error:
        results, failed, left, tried = error.results, len(error.failed), len(error.left), error.tried
    from promptbench.show.tables.show import print_tables  # it takes pandas, runs do not

    tables = print_tables(results, [suite], methods, datasets or [entry.name for entry in suite.entries()])
    if failed:
        of = f"{failed} of {tried} runs" if tried > 1 else "the run"
        print(f"promptbench: {of} failed; see *.failed.json in {output}", file=sys.stderr)
    if left:
        print(f"promptbench: {left} failed before; --retry-failed does them again", file=sys.stderr)
    if results and sys.stdout.isatty() and sys.stderr.isatty():  # nobody else asks what to do next
        print("", *next_steps(tables, results, output), sep="\n", file=sys.stderr)
    return 1 if failed or left else 0


def next_steps(tables: Sequence[Table], results: Sequence[Result], output: Path) -> list[str]:
    """Where results are, and the commands that show them again, make a page of them and, with what was trained,
    classify images."""
    usual = output == Path(OUTPUT)
    place = "" if usual else f" --results {quote(str(output))}"
    words: list[str] = []
    protocols = list(dict.fromkeys(table.protocol for table in tables))
    if protocols != [PROTOCOL]:
        words += ["--protocol", *protocols]
    if len(protocols) == 1:
        words += ["--sort", quote(tables[0].main_column.title)]
    steps = [
        f"results: {output}",
        f"the best first: {' '.join(['promptbench table', *words])}{place}",
        f"a page of them: promptbench report{place}",
    ]
    trained = [result for result in results if result.losses]
    if trained:
        run = LATEST if usual else quote(str(result_path(output, trained[-1].spec)))
        steps.append(f"your own images: promptbench predict --run {run} PHOTO")
    return steps


def drawable(console: Console) -> bool:
    """Whether something can be drawn over: in a terminal, and in a notebook that has widgets."""
    if console.is_jupyter:
        return find_spec("ipywidgets") is not None
    return console.is_terminal


def bars_of(console: Console) -> Progress:
    """A bar for all runs, and one for the steps of the run under way."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn as Remaining
    from rich.table import Column

    return Progress(
        TextColumn("{task.description}", table_column=Column(min_width=32)),  # so that nothing jumps from run to run
        BarColumn(bar_width=24),
        MofNCompleteColumn(table_column=Column(min_width=9)),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        Remaining(),
        TextColumn("{task.fields[loss]}"),
        console=console,
        transient=True,
    )


def figures(result: Result) -> str:
    """`base 98.1  new 95.0  h 96.5  loss 0.123`."""
    found = headline(result).items()
    shown = [f"{name.removesuffix('/accuracy')} {value:.{digits_of(name)}f}" for name, value in found]
    if result.losses:
        shown.append(f"loss {sum(result.losses[-1].values()):.3f}")
    return "  ".join(shown)


def headline(result: Result) -> dict[str, float]:
    """The accuracies of a run, and what has no longer name, as its table has them, others behind; of a corruption the
    mean over its severities alone."""
    shown = {name: value for name, value in result.metrics.items() if "/" not in name or name.endswith("/accuracy")}
    protocol: Protocol = load("protocols", result.spec.protocol)()
    evaluations = sorted(result.conditions.get("images", {}))
    columns = [column.key for column in protocol.columns(protocol.metrics[0], evaluations, [])]
    first = [name for name in columns if name in shown]
    ordered = dict.fromkeys([*first, *sorted(shown)])
    return {name: shown[name] for name in ordered if ":" not in name}


def title(run: Run) -> str:
    """`base2new, 16 shots: coop mini_shapes seed 1`."""
    spec = run.spec
    data, train = spec.seeds
    seed = data if data == train else f"{data}/{train}"
    shots = "all images" if spec.shots is None else f"{spec.shots} shot{'s' * (spec.shots != 1)}"
    return f"{spec.protocol}, {shots}: {spec.label} {spec.halved_dataset} seed {seed}"
