"""The kinds of input from outside: each spoils one that was valid and says through which door it comes in.

A kind takes `draw`, the site and an empty folder; it returns what to do: the words of a command, or a function that a
command calls. What it writes is input, `cache` instead of the site's; what the act writes must lie in `out` below it.
"""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from hypothesis import strategies as st
from promptbench.benchmarks import fuzz_site
from promptbench.benchmarks.fuzz_changes import OTHERS, PATHS, TEXTS, Act, Draw, as_json, changed, damaged, odd
from promptbench.benchmarks.fuzz_images import image_bytes
from promptbench.benchmarks.fuzz_site import Site
from promptbench.benchmarks.fuzz_stored import cached_features, claim_files, exports, partial_files, trainings

from promptbench import samples
from promptbench.checkpoints import load_official_checkpoint

Kind = Callable[[Draw, Site, Path], Act]

ALIASES = "&a0 [x, x, x, x, x, x, x, x, x]"
LAUGHS = "title: " + ALIASES + "".join(f"\nk{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * 9) + "]" for n in range(1, 12))
YAMLS = (
    LAUGHS + "\nroles: {base2new: *a11}\nbackbone: *a11\n",
    "roles: &a {base2new: *a}\ntitle: x\nbackbone: mini\n",
    "title: x\nbackbone: mini\nrecipe: &a {lr: *a}\nroles: {base2new: [mini_shapes]}\n",
    "!!python/object/apply:os.system ['touch executed']\n",
    "title: !!binary aGFsbG8=\nbackbone: 2001-99-99\n",
    "? [a, b]\n: {? {c: d} : e}\n",
    "{" * 3000,
    "- " * 5000,
    "",
    "\t",
    "%YAML 9.9\n---\n",
)


def suite_files(draw: Draw, site: Site, work: Path) -> Act:
    """Suites, listed, shown, or run."""
    path = work / "mine.yaml"
    how = draw(st.integers(0, 5))
    document = changed(draw, site.suite)
    if how == 0:
        path.write_text(draw(st.sampled_from(YAMLS)))
    elif how == 1:
        path.write_bytes(damaged(draw, yaml.safe_dump(site.suite).encode()))
    else:
        try:
            path.write_text(yaml.safe_dump(document), errors="surrogateescape")
        except (yaml.YAMLError, RecursionError, UnicodeError):
            path.write_text(json.dumps(document))
    words = ("--suite", str(path), "--method", draw(st.sampled_from(("zeroshot", "coop"))))
    if how == 2:
        return ("show-config", *words)
    more = ("--output", str(work / "out"))
    return ("run", *words, *more, *(() if how == 3 and "coop" not in words else ("--dry-run",)))


def split_files(draw: Draw, site: Site, work: Path) -> Act:
    """Split files like CoOp's, below a data root."""
    root = work / "data"
    (root / "dtd").mkdir(parents=True)
    (root / "dtd" / "images").symlink_to(site.folder / "data" / "dtd" / "images")
    (root / "dtd" / "split_zhou_DescribableTextures.json").write_bytes(as_json(draw, fuzz_site.split()))
    words = ("--suite", "clip11", "--dataset", "dtd", "--data-root", str(root), "--backbone", site.backbone)
    more = ("--method", "zeroshot", "--shots", "1", "--seeds", "1", "--threads", "1", "--output", str(work / "out"))
    return ("run", *words, *more)


def class_names(draw: Draw, site: Site, work: Path) -> Act:
    """Lists of class names: of folders, and to score."""
    path = work / "names.txt"
    lines = [f"{name} a {name}" for name in fuzz_site.BIRDS]
    for _ in range(draw(st.integers(1, 3))):
        odd_text = draw(st.one_of(st.sampled_from((*PATHS, *TEXTS)), st.text(max_size=30)))
        lines[draw(st.integers(0, 3))] = draw(st.sampled_from(("", "finch ", "hawk\t", "owl "))) + odd_text
    data = "\n".join(lines).encode(errors="surrogatepass")
    path.write_bytes(damaged(draw, data) if draw(st.booleans()) else data)
    if draw(st.booleans()):
        return site.words("zeroshot", work / "out", "--set", f"birds.class_names={path}")
    run = site.results(site.folder / "runs", "coop")[0]
    image = site.folder / "birds" / "owl" / "0.png"
    return ("predict", "--run", str(run), "--classes-file", str(path), str(image))


def result_files(draw: Draw, site: Site, work: Path) -> Act:
    """Results, through every command that reads them."""
    runs = site.copy("runs", work)
    path = draw(st.sampled_from(site.results(runs)))
    path.write_bytes(as_json(draw, json.loads(path.read_text())))
    if draw(st.integers(0, 3)) == 0:
        spec = json.loads(site.results(site.folder / "runs")[0].read_text())["spec"]
        failure = {"schema": 1, "spec": spec, "reason": "it broke", "where": {"epoch": 1}, "created": "2026-01-01"}
        path.with_name("other-0123456789ab.failed.json").write_bytes(as_json(draw, failure))
    out, results = work / "out", ("--results", str(runs))
    ways: tuple[Act, ...] = (
        *(("table", *results, "--format", name) for name in ("md", "latex", "csv", "html", "json")),
        ("table", *results, "--per-seed", "--with-published"),
        ("table", *results, "--group-by", "coop.n_ctx", "--metric", "ece"),
        ("report", *results, "-o", str(out / "report.html")),
        ("status", "--output", str(runs)),
        ("diff", str(site.folder / "runs"), str(runs)),
        ("diff", str(runs), str(site.folder / "runs"), "--format", "json"),
        ("results", "merge", str(runs), str(site.folder / "runs"), "-o", str(out)),
        ("inspect", "--run", str(path)),
        ("predict", "--run", str(path), "--classes", "cat,dog", str(site.folder / "birds" / "owl" / "0.png")),
        ("export", "--run", str(path), "-o", str(out / "export")),
        ("eval", "--run", str(path), "--protocol", "few_shot", "--output", str(out)),
    )
    return draw(st.sampled_from(ways))


def regenerate_lists(draw: Draw, site: Site, work: Path) -> Act:
    """What `regenerate` is told to build; it writes below the list's own folder."""
    out = work / "out"
    site.copy("runs", work).rename(out)
    listed = {
        "tables": [
            {"file": "t.md", "protocol": "base2new"},
            {"file": "sub/u.csv", "protocol": "base2new", "format": "csv"},
        ]
    }
    (out / "regenerate.yaml").write_bytes(as_json(draw, listed))
    return ("regenerate", str(out))


def checkpoints(draw: Draw, site: Site, work: Path) -> Act:
    """Official checkpoints: changed, damaged, of the older format, and with code in them."""
    folder = work / "prompt_learner"
    folder.mkdir()
    path = folder / draw(st.sampled_from(("model.pth.tar-2", "model-best.pth.tar", "epoch.ckpt")))
    content, how = fuzz_site.checkpoint(site), draw(st.integers(0, 6))
    evil = fuzz_site.evil_pickle(work / "executed", draw(st.integers(0, 24)), draw(st.integers(0, 5)))
    stream = io.BytesIO()
    if how == 0:
        path.write_bytes(evil)
    elif how == 1:
        with zipfile.ZipFile(path, "w", draw(st.sampled_from((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))) as archive:
            archive.writestr(f"{draw(st.sampled_from(('archive', '../..', '/tmp')))}/data.pkl", evil)
            archive.writestr("archive/version", "3\n")
            archive.writestr("archive/data/0", b"\0" * draw(st.sampled_from((0, 10**7))))
    elif how == 2:
        marker = fuzz_site.Evil(work / "executed", draw(st.integers(0, 4)))
        torch.save({**content, draw(st.sampled_from(("scheduler", "state_dict", "hyper_parameters"))): marker}, stream)
    elif how == 3:
        torch.save(content, stream, _use_new_zipfile_serialization=False)
    elif how == 4:
        state = content["state_dict"]
        name = draw(st.sampled_from(sorted(state)))
        others = (torch.zeros(()), torch.zeros(3, 0), torch.ones(2, 2).int(), torch.full((4, 8), float("nan")), "text")
        state[draw(st.sampled_from((name, "prompt_learner.other", *TEXTS)))] = draw(st.sampled_from(others))
        torch.save(content, stream)
    else:
        plain = {"state_dict": {}, **{key: value for key, value in content.items() if key != "state_dict"}}
        torch.save({**changed(draw, plain), "state_dict": content["state_dict"]} if how == 5 else content, stream)
    if how > 1:
        data = stream.getvalue()
        path.write_bytes(damaged(draw, data) if how == 6 or draw(st.integers(0, 3)) == 0 else data)
    if draw(st.integers(0, 3)) == 0:
        named = draw(st.sampled_from((path.name, *PATHS, *TEXTS)))
        (folder / "checkpoint").write_bytes(f"{named}\n".encode(errors="surrogatepass"))
    place = draw(st.sampled_from((path, folder, work)))
    return lambda: load_official_checkpoint(site.method, place)


def few_shot_pickles(draw: Draw, site: Site, work: Path) -> Act:
    """CoOp's pickled samples: changed, damaged, and with code in them."""
    path, how, protocol = work / "shot_2-seed_1.pkl", draw(st.integers(0, 3)), draw(st.integers(2, 5))
    held: Any = fuzz_site.datums(site)
    if how == 0:
        path.write_bytes(fuzz_site.evil_pickle(work / "executed", draw(st.integers(0, 24)), draw(st.integers(0, 5))))
    elif how == 1:
        path.write_bytes(damaged(draw, pickle.dumps(held, protocol)))
    elif how == 2:
        datum = draw(st.sampled_from(held["train"]))
        setattr(datum, draw(st.sampled_from(("_impath", "_label", "_classname", "other"))), draw(odd))
        path.write_bytes(pickle.dumps(held, protocol))
    else:
        other = draw(st.sampled_from((set(), b"x", 1.5, 2**70, object, len, Datum_like(work), *OTHERS)))
        held[draw(st.sampled_from(("train", "test", "", 5)))] = other
        path.write_bytes(pickle.dumps(held, protocol))
    if draw(st.integers(0, 2)) == 0:
        return site.words("coop", work / "out", "--sampler", f"file:{path}")
    return lambda: samples.read_coop(path, {"train": site.dataset.items("train")})


def Datum_like(work: Path) -> Any:
    """Something that makes a file when it is unpickled, among honest entries."""
    return [fuzz_site.Evil(work / "executed", 0)]


def sample_files(draw: Draw, site: Site, work: Path) -> Act:
    """Samples as JSON lines."""
    path, lines = work / "mine.jsonl", fuzz_site.sample_lines(site, work)
    lines = changed(draw, lines)
    text = "\n".join(json.dumps(line) for line in (lines if isinstance(lines, list) else [lines]))
    data = text.encode() + draw(st.sampled_from((b"", b"\n", b"\n\n")))
    path.write_bytes(damaged(draw, data) if draw(st.integers(0, 2)) == 0 else data)
    if draw(st.integers(0, 2)) == 0:
        return site.words("coop", work / "out", "--sampler", f"file:{path}")
    return lambda: (samples.read_header(path), samples.read_sample(path, site.dataset.items("train")))


def images(draw: Draw, site: Site, work: Path) -> Act:
    """Image files: cut short, of another format than their name says, with sizes that no memory holds."""
    folder = site.copy("birds", work)
    path = folder / "owl" / draw(st.sampled_from(("0.png", "1.png", "7.png")))
    path.write_bytes(image_bytes(draw))
    if draw(st.booleans()):
        run = site.results(site.folder / "runs", draw(st.sampled_from(("zeroshot", "coop"))))[0]
        return ("predict", "--run", str(run), "--classes", "cat,dog", str(path), str(folder / "owl" / "2.png"))
    more = draw(st.sampled_from(((), ("--on-bad-image", "skip"))))
    return site.words("zeroshot", work / "out", "--set", f"birds.root={folder}", *more)


KINDS: dict[str, Kind] = {
    "suites": suite_files,
    "split files": split_files,
    "class-name files": class_names,
    "result files": result_files,
    "lists of regenerate": regenerate_lists,
    "official checkpoints": checkpoints,
    "few-shot pickles": few_shot_pickles,
    "sample files": sample_files,
    "images": images,
    "cached features": cached_features,
    "partial files": partial_files,
    "claim files": claim_files,
    "stored trainings": trainings,
    "exported folders": exports,
}
