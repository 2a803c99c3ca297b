"""What a notebook or a script calls; `promptbench` names it: runs, their tables, and what there is to run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from promptbench import registry
from promptbench.cli.progress import Display
from promptbench.config import path_of
from promptbench.data.dataset import data_roots
from promptbench.experiment import RAISE, Where
from promptbench.experiment import run as run_request
from promptbench.results.result import Result
from promptbench.runs.listener import Listener, Silent, check_installed
from promptbench.runs.request import Request
from promptbench.runs.session import Place, Session
from promptbench.suite import Suite

OUTPUT = "promptbench-runs"


def run(
    methods: str | Sequence[str] = (),
    *,
    protocol: str | Sequence[str] = (),
    suite: str | Path | Suite = "mini",
    datasets: str | Sequence[str] = (),
    seeds: int | Sequence[int] = (),
    settings: Mapping[str, Any] | None = None,
    grid: Mapping[str, Sequence[Any]] | None = None,
    output: str | Path = OUTPUT,
    data_root: str | Path | Sequence[str | Path] = (),
    jobs: int | None = None,
    limit: int | None = None,
    runs_per_gpu: int = 1,
    executor: str = "local",
    executor_options: Sequence[str] = (),
    save_predictions: bool = False,
    skip_unreadable: bool = False,
    loggers: str | Sequence[str] = (),
    plugins: str | Path | Sequence[str | Path] = (),
    retry_failed: bool | None = None,
    keep_outdated: bool = False,
    progress: bool = True,
    on_error: str = RAISE,
    **asked: Any,
) -> list[Result]:
    """Train, evaluate and store what `promptbench run` would, and return the results in the order of the plan.

    A run that is finished in the output folder is read instead, whoever has done it.

        results = pb.run("maple", datasets=["mini_colours"], seeds=[1, 2, 3], settings={"maple.depth": 2})
        print(pb.table(results))

    Args:
        methods: Names, `name@preset`, or `all`; without any the suite's line-up. The suite's companions run too.
        protocol: One or several, or `all`; without any `base2new`, or all classes (`few_shot`) of images of your own.
        suite: A name, the path of a YAML file, or a suite.
        datasets: In the place of the suite's: names, or `folder:PATH` for images of your own.
        seeds: Different integers; the suite's without any.
        settings: `method.field`, `dataset.field` or `score.field` to a value; `field` of all methods that have it.
        grid: `method.field` to values; a method runs with every combination.
        output: The folder for results and learned prompts.
        data_root: Folders that hold the datasets; without any those of PROMPTBENCH_DATA.
        jobs: Runs at once; None for as many as cores and memory carry, here or on a cluster, and one on a GPU.
        limit: Most images of an evaluation, for a quick look; None for all.
        runs_per_gpu: Of the jobs, most on one GPU.
        executor: Where runs are done: `local`, `ray`, `ray:ADDRESS` or `slurm`.
        executor_options: Of Ray or Slurm, such as `partition=gpu`.
        save_predictions: Whether the scores of every image evaluated are kept.
        skip_unreadable: Whether images that cannot be read are left out; otherwise they are an error.
        loggers: Who watches each run: `csv`, `tensorboard`, `wandb`.
        plugins: Python files with methods, datasets, protocols or scores of your own.
        retry_failed: Whether runs that failed in an earlier call are tried again; None for those that did not end the
            process itself, twice.
        keep_outdated: Whether finished runs stand whose weights or whose method's code changed since.
        progress: Whether bars and a line for each run are shown, in a terminal or a notebook.
        on_error: `raise`, when everything else is done, or `record`: the result of a run that failed is missing, and a
            file `*.failed.json` says why.
        asked: The other arguments of `Request.of`: `shots`, `data_seed`, `train_seed`, `sampler`, `split`, `scores`,
            `corrupt`, `train_views`, `backbone`, `threads`, `device`, `precision`, `deterministic`, `temperature`,
            `limit`, `companions`.

    Raises:
        UsageError: A name is unknown, a value does not fit, or data are missing.
        RunsFailed: Runs failed; its `results` are those of the others.
    """
    if limit is not None:
        asked["limit"] = limit
    files = _listed(plugins)
    for path in files:
        registry.add_file(path)
    where = Where(
        jobs=jobs, runs_per_gpu=runs_per_gpu, executor=executor, options=_listed(executor_options), plugins=files
    )
    where.check()
    request = Request.of(
        methods=methods,
        protocol=protocol,
        suite=suite,
        datasets=datasets,
        seeds=seeds,
        settings=settings,
        grid=grid,
        elsewhere=not where.here,
        **asked,
    )
    watching = tuple(dict.fromkeys(_listed(loggers)))
    check_installed(watching)
    place = Place(
        path_of(output).absolute(),
        data_roots(_listed(data_root)),
        request.device,
        save_predictions=save_predictions,
        skip_unreadable=skip_unreadable,
        loggers=watching,
    )
    listener: Listener = Display() if progress else Silent()
    return run_request(
        request,
        Session(place, request.suite),
        listener,
        where=where,
        retry_failed=retry_failed,
        keep_outdated=keep_outdated,
        on_error=on_error,
    )


def _listed(given: str | Path | Sequence[Any]) -> tuple[Any, ...]:
    return (given,) if isinstance(given, (str, Path)) else tuple(given)
