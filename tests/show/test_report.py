"""The report page: what it says, that it needs nothing else, and how it behaves in a browser."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from shared_paths import REPOSITORY

from promptbench.cli import main
from promptbench.cli.flags import request_of
from promptbench.metrics.classification import harmonic_mean
from promptbench.results.result import Result, write_result
from promptbench.results.spec import Spec, to_plain
from promptbench.runs.plan import plan_runs
from promptbench.show.report import page, pictures
from promptbench.show.report.facts import facts, pooled
from promptbench.show.report.pictures import Picture
from promptbench.show.tables.formats.texts import clean
from promptbench.show.tables.show import View, tables_of
from promptbench.suite import load_suite

HOSTILE = "</script><!--<script><img src=x onerror=\"document.title='taken'\">&amp;'\u2028\u202e$x_1"
SEEN = HOSTILE.replace("\u2028", " ").replace("\u202e", " ")


def run(dataset: str = "dtd", method: str = "maple", seed: int = 1, base: float = 80, new: float = 70) -> Result:
    config = {"n_ctx": 2, "ctx_init": ""}
    recipe = {"epochs": 5, "lr": 0.0035, "origin": "authors"}
    return Result(
        spec=Spec(
            suite="clip11",
            protocol="base2new",
            dataset=dataset,
            method=method,
            config=config,
            recipe=recipe,
            shots=16,
            data_seed=seed,
            train_seed=seed,
            backbone="ViT-B-16-quickgelu:openai",
            threads=2,
            dataset_options={"render": {"seed": 7}},
            weights_hash="a1b2",
            split_digest=f"split of {dataset}",
            sample_digest=f"sample {seed} of {dataset}",
            class_names={"base": "bb", "new": "nn"},
            templates={"base": "a photo of a {}.", "new": ["{}", HOSTILE]},
        ),
        conditions={
            "transform": {"evaluation": "resize/1", "training": "flip/2"},
            "provenance": {"config.n_ctx": "default (paper)", "recipe.lr": "command line"},
        },
        metrics={"base/accuracy": base, "new/accuracy": new, "h": harmonic_mean(base, new)},
        cost={"train_seconds": 10.5 + seed, "learned_parameters": 4096},
        versions={"promptbench": "0.1.0", "torch": "2.9"},
        commit="c0ffee" * 6 + "c0ff",
        created="2026-01-02T03:04:05+00:00",
    )


def several() -> list[Result]:
    """Two methods on two datasets with three seeds; coop is better on new classes, maple on base ones."""
    figures = {
        ("dtd", "coop"): (70, 65),
        ("dtd", "maple"): (80, 60),
        (HOSTILE, "coop"): (75, 69),
        (HOSTILE, HOSTILE): (85, 61),
    }
    return [
        run(dataset, method, seed, base + seed, new)
        for (dataset, method), (base, new) in figures.items()
        for seed in (1, 2, 3)
    ]


def rendered(results: Sequence[Result], **more: Any) -> str:
    tables = tables_of(results, [load_suite("clip11")], (), (), View())
    return page.render(tables, **more)


WITHIN = ("strong", "u", "bdi", "wbr", "br", "small", "span")  # what is within a cell


class Parsed(HTMLParser):
    """Tags with their attributes, the rows of tables, and the text of each element that holds code."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.code: dict[str, str] = {}
        self.inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in WITHIN:
            self.inside = dict(attrs).get("id") or tag if tag in ("script", "style", "title", "h1") else ""
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.inside = "cell"
        if ("class", "of") in attrs:  # repeats what stands above
            self.inside = ""

    def handle_endtag(self, tag: str) -> None:
        if tag not in WITHIN:
            self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "cell":
            self.rows[-1][-1] += data
        elif self.inside:
            self.code[self.inside] = self.code.get(self.inside, "") + data


def test_the_tables_read_without_the_script() -> None:
    rows = Parsed(rendered(several())).rows
    words = ["unknown", "generic"]
    assert rows[0] == ["method", "base", "new", "H", "n", "selection", "text prior"]
    assert rows[1] == ["average"] and ["CoOp", "74.5 ± 0.8", "67.0 ± 0.0", "70.6 ± 0.4", "3", *words] in rows[2:5]
    dtd = rows[rows.index(["DTD"]) :]
    assert dtd[1] == ["CoOp", "72.0 ± 0.8", "65.0 ± 0.0", "68.3 ± 0.4", "3", *words]


def test_rows_from_the_words_of_their_dataset_are_a_body_of_their_own() -> None:
    started = replace(run(), spec=replace(run().spec, config={"n_ctx": 2, "ctx_init": "dataset"}))
    text = rendered([run(), run(method="coop"), started])
    bodies = re.findall('<tbody class="block">(.*?)</tbody>', text, flags=re.DOTALL)
    assert [body.count("data-line") for body in bodies] == [2, 1] and "MaPLe (ctx_init=<wbr>dataset)" in bodies[1]
    above = [re.search('rowgroup"><span>(.*?)</span>', body)[1] for body in bodies]  # type: ignore[index]
    assert above == ["DTD, text prior: generic", "DTD, text prior: dataset"]


def transferred(seed: int = 1, target: float = 60) -> Result:
    """A run under another protocol."""
    one = run(seed=seed)
    spec = replace(one.spec, protocol="cross_dataset", dataset="imagenet", evaluated={"dtd": {}, "eurosat": {}})
    figures = {"source": 70.0, "dtd": target, "eurosat": target + 2, "average": target + 1}
    metrics = {f"{name}/accuracy": value for name, value in figures.items()}
    images = dict.fromkeys(("source", "dtd", "eurosat"), 9)
    return replace(one, spec=spec, metrics=metrics, conditions={**one.conditions, "images": images})


def test_the_page_opens_with_what_it_compares_and_the_averages_of_every_protocol() -> None:
    text = rendered([*several(), *map(transferred, (1, 2, 3))])
    opening = text.partition('<p class="lead">')[2].partition("</p>")[0]
    assert opening.startswith(
        "This page compares 3 methods on 4 datasets in 15 runs: suite clip11, backbone ViT-B-16-quickgelu:openai, "
        "seeds 1, 2, 3, made 2026-01-02 by promptbench 0.1.0. "
    )
    assert re.findall('<li><a href="#(.*?)">(.*?)</a></li>', text) == [
        ("averages", "Averages"),
        ("table-0", "From base to new classes"),
        ("table-1", "Cross-dataset transfer"),
    ]
    assert all(f'id="{place}"' in text for place in ("averages", "table-0", "table-1"))
    assert text.index('id="averages"') < text.index('id="table-0"')
    rows = Parsed(text).rows
    heads = ["From base to new classesH, mean of 2 datasets", "Cross-dataset transferaverage, dataset ImageNet"]
    assert rows[:2] == [["method", *heads], ["text prior: generic"]]
    assert ["CoOp", "70.6 ± 0.4", ""] in rows[2:5] and ["MaPLe", "n/a (1 of 2 datasets)", "61.0 ± 0.0"] in rows[2:5]


def test_the_marks_and_words_of_the_averages_are_explained_beside_them() -> None:
    rebuilt = [replace(one, conditions={**one.conditions, "reconstructed": True}) for one in several()[:3]]
    text = rendered([*rebuilt, *several()[3:], *map(transferred, (1, 2, 3), (60, 61, 99))])
    averages = text.partition('id="averages"')[2].partition("</section>")[0]
    assert "CoOp§" in averages and "<li>§ reconstructed without its authors&#x27; code" in averages
    assert "<li>text prior: words told besides class names (figures compare within one): generic = " in averages
    assert "<li>H, average: %, 0 to 100, higher is better.</li>" in averages
    assert "74.3 ± 18.2!" in averages and averages.count("<li>! a seed lies farther") == 1


def test_a_page_of_one_table_has_neither_contents_nor_its_averages_twice() -> None:
    text = rendered(several())
    assert "<nav" not in text and 'id="averages"' not in text and "From base to new classes</h2>" in text
    assert "Train on the first half of the classes, evaluate on both halves apart.</p>" in text


def test_headings_tell_tables_of_one_protocol_apart() -> None:
    other = replace(run(), spec=replace(run().spec, backbone="RN50:openai"))
    headings = re.findall("<h2 id=.*?>(.*?)</h2>", rendered([run(), other]))
    assert sorted(headings[1:]) == [
        "From base to new classes, RN50:openai",
        "From base to new classes, ViT-B-16-quickgelu:openai",
    ]


def test_hostile_names_stay_text() -> None:
    found = Parsed(rendered(several(), title=HOSTILE, remark=HOSTILE))
    assert found.code["title"] == found.code["h1"] == SEEN
    assert [SEEN, "87.0 ± 0.8", "61.0 ± 0.0"] in [row[:3] for row in found.rows] and [SEEN] in found.rows
    assert [attributes for tag, attributes in found.tags if tag == "script"] == [
        {"id": "data", "type": "application/json"},
        {},
    ]
    assert not [1 for tag, attributes in found.tags if tag == "img" or any(name[:2] == "on" for name in attributes)]


def test_stored_data_are_json_that_ends_no_element() -> None:
    found = Parsed(rendered(several()))
    text = found.code["data"]
    assert not set(text) & set("<>&\u2028") and text.isascii()
    document = json.loads(text)
    labels = {line["label"] for line in document["tables"][0]["lines"]}
    assert labels == {"CoOp", "MaPLe", HOSTILE} and len(document["runs"]) == 12
    cell = document["tables"][0]["lines"][0]["cells"]["base/accuracy"]
    assert [seed["value"] for seed in cell["seeds"]] == [71, 72, 73]
    assert [document["runs"][place]["name"] for place in cell["runs"]] == [one.name for one in several()[:3]]


def test_the_page_needs_nothing_else_and_its_policy_forbids_it() -> None:
    picture = Picture("gain", "Gains", b"<svg/>")
    text = rendered(several(), pictures={0: [picture]})
    found = Parsed(text)
    places = [value for _, attributes in found.tags for name, value in attributes.items() if name in ("src", "href")]
    assert places == ["data:image/svg+xml;base64," + base64.b64encode(b"<svg/>").decode()]
    assert not re.search(r"url\(|@import|https?:", found.code["style"] + found.code["script"])
    assert not any("style" in attributes for _, attributes in found.tags)
    (policy,) = [attributes["content"] for _, attributes in found.tags if "http-equiv" in attributes]
    own = {
        tag: base64.b64encode(hashlib.sha256(found.code[tag].encode()).digest()).decode() for tag in ("style", "script")
    }
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{own['style']}'; script-src 'sha256-{own['script']}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for item in value.values():
            yield from leaves(item)
    else:
        yield value


def test_the_facts_of_a_run_are_all_that_its_record_says() -> None:
    result = run()
    record = to_plain(result)
    said = [fact.value for fact in facts(result)]
    for part in (record["spec"], record["conditions"], record["cost"], record["versions"], record["commit"]):
        kept = {name: item for name, item in part.items() if name != "provenance"} if isinstance(part, dict) else part
        for leaf in leaves(kept):
            text = leaf if isinstance(leaf, str) else clean(json.dumps(leaf, ensure_ascii=False))
            assert text in said or leaf in ("", {})
    found = {(fact.section, fact.name): (fact.value, fact.source) for fact in facts(result)}
    assert found["Settings of the method", "n_ctx"] == ("2", "default (paper)")
    assert found["Settings of the method", "ctx_init"] == ('""', "")
    assert found["Recipe", "lr"] == ("0.0035", "command line") and found["Recipe", "origin"] == ("authors", "")
    assert found["Data", "dataset_options.render.seed"] == ("7", "")
    assert found["Figures", "h"] == ("74.7", "")


def test_facts_that_runs_share_are_stored_once() -> None:
    results = [run(seed=seed) for seed in (1, 2, 3)]
    stored = pooled(results)
    assert len(stored["facts"]) == len(set(stored["facts"])) == len(facts(results[0])) + 2 * 4
    first, second = (set(one["facts"]) for one in stored["runs"][:2])
    differing = {stored["facts"][place].name for place in first - second}
    assert differing == {"data_seed", "train_seed", "sample_digest", "train_seconds"}


def contrast(one: str, other: str) -> float:
    """WCAG 2's contrast of two colours, six or three hex digits each, from 1 to 21."""
    lights = []
    for colour in (one, other):
        digits = colour if len(colour) == 6 else "".join(2 * digit for digit in colour)
        parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def test_contrast_is_that_of_the_norm() -> None:
    assert contrast("000", "ffffff") == 21 and round(contrast("777777", "fff"), 2) == 4.48  # as WebAIM's checker says


@pytest.mark.parametrize("mode", ["light", "dark", "print"])
def test_text_stands_out_from_its_ground_in_every_mode(mode: str) -> None:
    style = resources.files("promptbench.show.report").joinpath("page.css").read_text(encoding="utf-8")
    start = {"light": ":root", "dark": "@media (prefers-color-scheme: dark)", "print": "@media print"}[mode]
    colours = dict(re.findall(r"--(\w+): #(\w+);", style.partition(start)[2].partition("}")[0]))
    for text in ("text", "quiet", "accent"):
        for ground in ("ground", "raised"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)  # AA of WCAG 2


def test_colours_of_plots_change_places_on_a_dark_screen() -> None:
    assert pictures.on_dark("ffffff") == "161616" and pictures.on_dark("000000") == "e6e6e6"  # as page.css has them
    for colour in ("0072b2", "d55e00", "009e73", "8c4a86", "7f7f7f", "333333"):
        assert contrast(pictures.on_dark(colour), "161616") >= 3  # what WCAG 2 asks of graphics
    text = '<svg width="9"><path d="M 1.23456 2&#10;" style="fill: #ffffff; stroke: #d55e00" id="#d55e00"/></svg>'
    assert pictures.following(text) == (
        '<svg width="9"><style>svg{fill:var(--c000000);--c000000:#000000;--cd55e00:#d55e00;--cffffff:#ffffff;}'
        "@media screen and (prefers-color-scheme:dark){svg{--c000000:#e6e6e6;--cd55e00:#ff821f;--cffffff:#161616;}}"
        '</style><path d="M 1.23456 2&#10;" style="fill: var(--cffffff); stroke: var(--cd55e00)" id="#d55e00"/></svg>'
    )


def test_pictures_are_stored_to_a_hundredth_of_a_point() -> None:
    text = """<svg><!-- 1.2345 -->
      <path d="M 1.23456 -2 \nL 3.1 4"/> <use x="1.23456" transform="translate(-9.9999 0) scale(0.015625)"/></svg>"""
    kept = '<svg><path d="M 1.23 -2 L 3.1 4"/><use x="1.23" transform="translate(-9.99 0) scale(0.015625)"/></svg>'
    assert pictures.shorter(text) == kept


class TestCommand:
    @pytest.fixture(autouse=True)
    def _results(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        for result in several():
            write_result("promptbench-runs", result)

    def test_without_matplotlib_one_line_says_so(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(pictures, "drawable", lambda: False)
        assert main.main(["report", "-o", "sub/r.html", "--title", "Ours & yours", "--method", "coop"]) == 0
        assert capsys.readouterr().out == f"wrote sub/r.html. {pictures.NO_MATPLOTLIB}\n"
        text = Path("sub/r.html").read_text(encoding="utf-8")
        assert "Ours &amp; yours" in text and "<p>No plots: " in text and "<img" not in text
        assert {row[0] for row in Parsed(text).rows if len(row) > 1} == {"method", "CoOp"}

    def test_only_a_report_is_replaced_unasked(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(pictures, "drawable", lambda: False)
        thesis = Path("thesis.html")
        thesis.write_text("years of work", encoding="utf-8")
        assert main.main(["report", "-o", "thesis.html"]) == 2
        said = (
            "promptbench: error: thesis.html exists and is no report; name another file, or replace it with --force.\n"
        )
        assert capsys.readouterr().err == said and thesis.read_text(encoding="utf-8") == "years of work"
        assert main.main(["report", "-o", "thesis.html", "--force"]) == 0
        assert main.main(["report", "-o", "thesis.html", "--dataset", "dtd"]) == 0
        assert page.is_report(thesis) and "average" not in thesis.read_text(encoding="utf-8").partition("<script")[0]

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--protocol", "base2nwe"], "Unknown protocol 'base2nwe'."),
            (["-o", "promptbench-runs"], "The report promptbench-runs cannot be written, since that is a folder"),
            (["--results", "nowhere"], "There are no results at"),
            (["--dataset", "eurosat"], "There is no stored result of 'eurosat' in promptbench-runs."),
        ],
    )
    def test_mistakes_are_one_line(self, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main.main(["report", *words]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1

    @pytest.mark.slow
    def test_plots_are_drawn_where_there_is_something_to_show(self) -> None:
        pytest.importorskip("matplotlib")
        suites = [load_suite("clip11")]
        (table,) = tables_of(several(), suites, (), (), View())
        drawn = [*pictures.pictures(table, suites)]
        assert [picture.kind for picture in drawn] == ["base-new", "seeds", "cost"]  # gain: over zero-shot, not there
        assert all(b"<svg" in picture.svg[:500] and picture.caption.endswith(".") for picture in drawn)

    @pytest.mark.slow
    def test_a_page_of_828_runs_takes_ten_seconds_of_one_core_and_four_megabytes(self, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib")
        many = tmp_path / "many"
        for place in range(12):
            for number in range(23):
                for seed in (1, 2, 3):
                    write_result(many, run(f"set {place}", f"method{number}", seed, 50 + number + seed, 40 + place))
        began = time.process_time()
        assert main.main(["report", "--results", str(many), "-o", "many.html"]) == 0
        assert time.process_time() - began < 10
        assert Path("many.html").stat().st_size < 4e6


class Chromium:
    """A headless browser that is spoken to through a pipe, as a person would: with keys, and by looking."""

    KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "End": 35, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}

    def __init__(self, binary: str, profile: Path) -> None:
        inwards, outwards = os.pipe(), os.pipe()
        theirs = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (inwards[0], outwards[1])]
        self._process = subprocess.Popen(
            [
                *(binary, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"),
                *(f"--user-data-dir={profile}", "--window-size=1200,900", "about:blank"),
            ],
            preexec_fn=lambda: [os.dup2(end, place) for place, end in enumerate(theirs, 3)] and None,
            pass_fds=(3, 4),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (inwards[0], outwards[1], *theirs):
            os.close(end)
        self._requests, self._replies = os.fdopen(inwards[1], "wb"), os.fdopen(outwards[0], "rb")
        self._number, self._unread, self._session = 0, b"", ""
        self.events: list[dict[str, Any]] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def close(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            self.send("Browser.close")
        self._process.wait(timeout=60)
        self._requests.close()
        self._replies.close()

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The reply to a request; what comes before it is kept among the events."""
        self._number += 1
        request = {"id": self._number, "method": method, "params": parameters}
        request |= {"sessionId": self._session} if self._session else {}
        self._requests.write(json.dumps(request).encode() + b"\0")
        self._requests.flush()
        while (message := self._receive()).get("id") != self._number:
            self.events.append(message)
        assert "error" not in message, message
        found: dict[str, Any] = message["result"]
        return found

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            more = os.read(self._replies.fileno(), 1 << 16)
            if not more:
                raise EOFError("The browser is gone.")
            self._unread += more
        first, _, self._unread = self._unread.partition(b"\0")
        found: dict[str, Any] = json.loads(first)
        return found

    def open(self, path: Path) -> None:
        self.events.clear()
        self.send("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())

    def look(self, expression: str) -> Any:
        """The value of an expression on the page."""
        reply = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in reply, reply
        return reply["result"].get("value")

    def press(self, *keys: str) -> None:
        for key in keys:
            text = {"Enter": "\r", " ": " "}.get(key)
            facts = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": self.KEYS[key]}
            self.send("Input.dispatchKeyEvent", type="keyDown", **facts, **({"text": text} if text else {}))
            self.send("Input.dispatchKeyEvent", type="keyUp", **facts)

    def write(self, text: str) -> None:
        self.send("Input.insertText", text=text)

    def complaints(self) -> list[dict[str, Any]]:
        """Errors and warnings of the page, among them loads that its policy refused."""
        self.look("0")
        console = [event for event in self.events if event.get("method") == "Runtime.consoleAPICalled"]
        others = ("Runtime.exceptionThrown", "Log.entryAdded")
        return console + [event for event in self.events if event.get("method") in others]


BINARY = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")
FOCUSED = "document.activeElement"
COLUMN = """[...document.querySelectorAll('.figures tr[data-line]')].filter((row) => !row.hidden)
    .map((row) => row.cells[%d].firstChild?.textContent ?? '')"""
ABOVE = """[...document.querySelectorAll('.figures .group')].filter((row) => row.checkVisibility())
    .map((row) => row.textContent.trim())"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    found = Chromium(BINARY, tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.mark.skipif(not BINARY, reason="needs Chromium")
class TestBrowser:
    @pytest.fixture
    def opened(self, browser: Chromium, tmp_path: Path) -> Iterator[Chromium]:
        """The browser at a small page with hostile names, which it must not complain about."""
        path = tmp_path / "report.html"
        picture = Picture("gain", "Gains.", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')
        path.write_bytes(rendered(several(), title=HOSTILE, pictures={0: [picture]}).encode())
        browser.open(path)
        yield browser
        assert browser.complaints() == []

    def test_it_renders_and_names_are_shown_literally(self, opened: Chromium) -> None:
        assert opened.look("document.querySelector('h1').textContent") == SEEN
        assert set(opened.look(COLUMN % 0)) == {SEEN, "CoOp", "MaPLe"} and opened.look(ABOVE).count(SEEN) == 1
        assert opened.look("document.querySelectorAll('img').length") == 1
        assert opened.look("document.querySelector('img').naturalWidth") == 9
        assert opened.look("document.querySelectorAll('script').length") == 2

    def test_heads_sort_by_keyboard_and_say_so(self, opened: Chromium) -> None:
        usual = opened.look(COLUMN % 0)
        opened.press(*["Tab"] * 4)  # filter, check box, method, base
        assert opened.look(f"{FOCUSED}.textContent") == "base"
        order = "document.querySelector('.figures thead th:nth-child(2)').getAttribute('aria-sort')"
        opened.press("Enter")
        assert opened.look(order) == "descending" and opened.look(COLUMN % 1)[-4:-2] == ["82.0 ± 0.8", "72.0 ± 0.8"]
        opened.press(" ")
        assert opened.look(order) == "ascending" and opened.look(COLUMN % 1)[-4:-2] == ["72.0 ± 0.8", "82.0 ± 0.8"]
        opened.press("Enter")
        assert opened.look(order) is None and opened.look(COLUMN % 0) == usual

    def test_lines_may_be_sorted_across_datasets_what_is_missing_last(self, opened: Chromium) -> None:
        of = (
            "[...document.querySelectorAll('.of')].filter((one) => one.checkVisibility()).map((one) => one.textContent)"
        )
        assert opened.look(of) == [] and len(opened.look(ABOVE)) == 4
        opened.press("Tab", "Tab", " ", *["Tab"] * 2, "Enter")
        assert opened.look(COLUMN % 1) == [
            *("87.0 ± 0.8", "82.0 ± 0.8", "77.0 ± 0.8", "74.5 ± 0.8", "72.0 ± 0.8"),
            *("n/a (1 of 2 datasets)", "n/a (1 of 2 datasets)", "", "", ""),
        ]
        assert opened.look(of)[:3] == [f" {SEEN}", " DTD", f" {SEEN}"] and opened.look(ABOVE) == []

    def test_the_filter_chooses_lines_and_columns(self, opened: Chromium) -> None:
        opened.press("Tab")
        assert opened.look(f"{FOCUSED}.labels[0].textContent.trim()") == "Filter by method or dataset"
        opened.write("DTD mapl")
        assert opened.look(COLUMN % 0) == ["MaPLe"] and opened.look(ABOVE) == ["DTD"]
        assert opened.look("document.getElementById('count').textContent") == "1 of 10 lines"
        opened.look("document.getElementById('filter').select()")
        opened.write("dtd new")
        heads = "[...document.querySelectorAll('.figures thead th')].filter((one) => !one.hidden)"
        assert sorted(opened.look(COLUMN % 0)) == ["CoOp", "MaPLe"]
        shown = opened.look(f"{heads}.map((one) => one.textContent)")
        assert shown == ["method", "new", "n", "selection", "text prior"]
        cells = "document.querySelector('.figures tr[data-line]:not([hidden])').cells"
        assert opened.look(f"[...{cells}].filter((one) => !one.hidden).length") == 5

    def test_a_filter_that_finds_nothing_says_so_and_is_cleared(self, opened: Chromium) -> None:
        empty = "document.getElementById('none')"
        assert opened.look(f"{empty}.checkVisibility()") is False
        opened.press("Tab")
        for cleared in (("Escape",), ("Tab", "Enter"), ("Tab", "Tab", "Tab", " ")):  # clear, check box, clear it all
            opened.write("nothing <b>like</b> it")
            assert opened.look(COLUMN % 0) == [] and opened.look(ABOVE) == []
            assert opened.look("document.getElementById('count').textContent") == "0 of 10 lines"
            assert "Nothing on this page matches nothing <b>like</b> it." in opened.look(f"{empty}.textContent")
            assert opened.look("document.querySelector('section').checkVisibility()") is False
            opened.press(*cleared)
            assert len(opened.look(COLUMN % 0)) == 10 and opened.look(f"{empty}.checkVisibility()") is False
            assert opened.look(f"{FOCUSED}.id") == "filter" and opened.look(f"{FOCUSED}.value") == ""

    def test_a_figure_opens_what_is_behind_it_and_focus_returns(self, opened: Chromium) -> None:
        opened.look("document.querySelectorAll('.block .figure')[0].focus()")
        assert opened.look(f"{FOCUSED}.textContent") == "72.0 ± 0.8"
        opened.press("ArrowDown", "ArrowRight", "Enter")
        assert opened.look("document.getElementById('panel').open") is True
        text = opened.look("document.getElementById('panel').textContent")
        for said in ("MaPLe, DTD, new", "mean 60.000 ± 0.000", "The 3 runs, and what sets them apart"):
            assert said in text
        for result in several()[3:6]:
            assert f"dtd, seed {result.spec.data_seed}: results/{result.name}.json" in text
        assert opened.look("document.querySelectorAll('#panel a').length") == 0  # where nobody says where files are
        command = opened.look("document.querySelector('#panel code').textContent")
        assert "--dataset dtd" in command and "--seeds 1 2 3" in command
        rows = opened.look(
            "[...document.querySelectorAll('#panel tr')].map((row) => [...row.cells].map((c) => c.textContent))"
        )
        for row in (
            ["seed 2", "60.000"],
            ["n_ctx", "2", "default (paper)"],
            ["lr", "0.0035", "command line"],
            ["split_digest", "split of dtd"],
            ["templates.new", clean(json.dumps(["{}", HOSTILE], ensure_ascii=False))],
            ["threads", "2"],
            ["torch", "2.9"],
        ):
            assert rows.count(row) == 1
        assert ["sample_digest", "sample 3 of dtd"] in rows and ["train_seconds", "11.5"] in rows
        opened.press("Escape")
        assert opened.look("document.getElementById('panel').open") is False
        assert opened.look(f"{FOCUSED}.textContent") == "60.0 ± 0.0"
        assert opened.look(f"{FOCUSED}.title") == ""

    def test_a_table_wider_than_the_screen_says_so_and_keeps_its_methods(self, opened: Chromium) -> None:
        box, hint = "document.querySelector('.box')", "document.querySelector('.hint').checkVisibility()"
        left = "document.querySelector('tr[data-line] > th').getBoundingClientRect().left"
        screen = {"height": 800, "deviceScaleFactor": 1}
        try:
            for width, wider in ((1400, False), (390, True)):
                opened.send("Emulation.setDeviceMetricsOverride", width=width, mobile=wider, **screen)
                opened.look("dispatchEvent(new Event('resize'))")
                assert opened.look(hint) is wider
            assert opened.look(f"{box}.parentElement.classList.contains('more')") is True
            assert opened.look("document.documentElement.scrollWidth") == 390  # the page itself does not scroll
            before = opened.look(left)
            opened.look(f"{box}.scrollLeft = 99")
            assert opened.look(f"{box}.scrollLeft") == 99 and opened.look(left) == before
        finally:
            opened.send("Emulation.clearDeviceMetricsOverride")

    def test_averages_are_filtered_and_open_as_the_figures_that_they_are(
        self, browser: Chromium, tmp_path: Path
    ) -> None:
        path = tmp_path / "averages.html"
        path.write_bytes(rendered([*several(), *map(transferred, (1, 2, 3))]).encode())
        browser.open(path)
        browser.look(
            "[...document.querySelectorAll('#summed .figure')].find((one) => one.textContent[0] === '6').click()"
        )
        text = browser.look("document.getElementById('panel').textContent")
        assert "MaPLe, ImageNet, averageCross-dataset transfermean 61.000 ± 0.000" in text
        browser.press("Escape")
        shown = "[...document.querySelectorAll('section')].filter((one) => !one.hidden).map((one) => one.id)"
        for words, sections in (
            ("maple", ["summed", "table-0", "table-1"]),
            ("imagenet", ["summed", "table-1"]),  # which stands in a head of the averages
            ("generic", []),  # a word of no name
        ):
            browser.look(f"document.getElementById('filter').value = '{words}'")
            browser.look("document.getElementById('filter').dispatchEvent(new Event('input'))")
            assert browser.look(shown) == sections
        assert browser.look("document.getElementById('none').checkVisibility()") is True
        assert browser.complaints() == []

    def test_pictures_follow_a_dark_screen(self, browser: Chromium, tmp_path: Path) -> None:
        drawn = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9">{}</svg>'
        drawn = drawn.format('<path d="M 0 0 L 9 0 L 9 9 L 0 9 z" style="fill: #ffffff"/>')
        path = tmp_path / "dark.html"
        path.write_bytes(
            rendered(several(), pictures={0: [Picture("a", "A.", pictures.following(drawn).encode())]}).encode()
        )
        browser.open(path)
        pixel = """(() => {
            const context = document.createElement('canvas').getContext('2d');
            context.drawImage(document.querySelector('img'), 0, 0);
            return [...context.getImageData(4, 4, 1, 1).data.slice(0, 3)]; })()"""
        ground = "getComputedStyle(document.body).backgroundColor"
        for scheme, shade in (("light", 255), ("dark", 22)):
            browser.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            browser.open(path)
            assert browser.look(pixel) == [shade] * 3 and browser.look(ground) == f"rgb({shade}, {shade}, {shade})"
        browser.send("Emulation.setEmulatedMedia", features=[])

    @pytest.mark.slow
    def test_a_figure_leads_to_its_files_and_to_the_command_that_makes_its_runs_again(
        self, browser: Chromium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pictures, "drawable", lambda: False)
        path = tmp_path / "a page" / "committed.html"
        stored = REPOSITORY / "results" / "mini" / "results" / "base2new"
        places = [str(stored / name) for name in ("mini_colours", "mini_neon")]
        assert main.main(["report", "--results", *places, "--method", "coop", "-o", str(path)]) == 0
        browser.open(path)
        browser.look("document.querySelector('.average tr[data-line]:nth-child(3) .figure').click()")
        links = browser.look("[...document.querySelectorAll('#panel a')].map((one) => [one.textContent, one.href])")
        files = [Path(unquote(urlsplit(address).path)) for _, address in links]
        assert len(files) == 6 and all(file.is_file() for file in files)
        words = shlex.split(browser.look("document.querySelector('#panel code').textContent"))
        runs = plan_runs(request_of(main.parser().parse_args(words[1:]), companions=False))
        assert {f"results/{run.spec.name}.json" for run in runs} == {name for name, _ in links}
        assert browser.look("document.querySelectorAll('#panel code').length") == 1
        browser.look("document.querySelector('#panel .command button').click()")
        assert browser.look("getSelection().toString()") == shlex.join(words)
        assert browser.complaints() == []

    def test_papers_figures_name_their_sources(self, browser: Chromium, tmp_path: Path) -> None:
        results = [run("dtd", "coop", seed) for seed in (1, 2)]
        path = tmp_path / "published.html"
        tables = tables_of(results, [load_suite("clip11")], (), (), View(published=True))
        path.write_bytes(page.render(tables).encode())
        browser.open(path)
        browser.look("document.querySelector('.figures .published .figure').click()")
        text = browser.look("document.getElementById('panel').textContent")
        assert "Published, not measured here" in text and ".csv, line " in text and "results/" not in text
        assert "Beside published figures" in browser.look("document.querySelector('main').textContent")
        assert browser.complaints() == []

    def test_two_thousand_cells_are_ready_and_usable_in_two_seconds(self, browser: Chromium, tmp_path: Path) -> None:
        results = [
            run(f"set {place}", f"method{number}", seed, 50 + number + seed, 40 + place)
            for place in range(33)
            for number in range(20)
            for seed in (1, 2)
        ]
        path = tmp_path / "large.html"
        path.write_bytes(rendered(results).encode())
        browser.open(path)
        assert browser.look("document.querySelectorAll('.figure').length") >= 2000
        browser.look("document.querySelectorAll('.figures thead button')[4].click(), document.body.offsetHeight")
        browser.look("""document.getElementById('filter').value = 'method7',
            document.getElementById('filter').dispatchEvent(new Event('input')), document.body.offsetHeight""")
        assert browser.look("document.querySelectorAll('.figures tr[data-line]:not([hidden])').length") == 35
        browser.look("document.querySelector('.block tr:not([hidden]) > .figure').click(), document.body.offsetHeight")
        assert browser.look("document.querySelectorAll('#panel details').length") == 2
        browser.send("Performance.enable")
        spent = {metric["name"]: metric["value"] for metric in browser.send("Performance.getMetrics")["metrics"]}
        assert browser.complaints() == []
        assert 0 < spent["ThreadTime"] < 2  # of the page's thread, so that a busy machine does not count
