from __future__ import annotations

import hashlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from promptbench import registry
from promptbench.config import UsageError

pytestmark = pytest.mark.usefixtures("no_plugins")

PLUGIN = '''"""Echo: says what it hears.

A. Author, "Echo", 2020.
"""

from promptbench.protocol import Protocol


class _Base(Protocol):
    pass


class Helper:
    title = "not this one"


class Echo(_Base):
    """A protocol."""

    title = "Ec" "ho"
    count: int = 3
    later: int
    info = dict(classes=47, names=("a", "b"), computed=len("abc"))
    computed = len("abc")

    def plan(self, suite, seed):
        return []
'''


def written(folder: Path, text: str, name: str = "echo") -> Path:
    path = folder / f"{name}.py"
    path.write_text(text, encoding="utf-8")
    return path


def test_names_are_the_files_of_the_packages_sorted() -> None:
    folder = Path(registry.__file__).parent / "protocols"
    files = sorted(file.stem for file in folder.glob("*.py") if not file.stem.startswith("_"))
    assert list(registry.names("protocols")) == files


@pytest.mark.parametrize("kind", ["methods", "datasets", "protocols"])
def test_every_plugin_has_facts_and_a_class_of_its_own(kind: str) -> None:
    for name in registry.names(kind):
        facts = registry.facts(kind, name)
        assert facts.name == name and facts.summary.endswith(".") and facts.path.is_file()
        assert registry.load(kind, name).__module__ == f"promptbench.{kind}.{name}"


def test_unknown_names_are_refused_with_the_nearest_one() -> None:
    for ask in (registry.load, registry.facts):
        with pytest.raises(UsageError, match="Unknown protocol 'base2mew'. Did you mean 'base2new'?"):
            ask("protocols", "base2mew")
    with pytest.raises(UsageError, match="Unknown kind of plugin 'method'. Did you mean 'methods'?"):
        registry.names("method")


def test_a_file_becomes_a_plugin_named_by_its_stem(tmp_path: Path) -> None:
    path = written(tmp_path, PLUGIN)
    assert registry.add_file(path, kind="protocols") == "echo"
    assert registry.add_file(path, kind="protocols") == "echo"
    assert "echo" in registry.names("protocols")
    cls = registry.load("protocols", "echo")
    assert cls.__name__ == "Echo" and cls is registry.load("protocols", "echo")
    assert cls.__module__.rpartition(".")[2] == "echo"


def test_facts_come_from_the_source_without_importing_it(tmp_path: Path) -> None:
    registry.add_file(written(tmp_path, PLUGIN + "\nraise RuntimeError\n"), kind="protocols")
    facts = registry.facts("protocols", "echo")
    assert facts.summary == "Echo: says what it hears."
    assert 'A. Author, "Echo", 2020.' in facts.docstring
    assert facts.attributes == {"title": "Echo", "count": 3, "info": {"classes": 47, "names": ("a", "b")}}


def test_a_class_built_on_a_sibling_is_found_in_the_source(tmp_path: Path) -> None:
    text = '"""Two."""\nfrom promptbench.protocols.base2new import Base2New\nclass Two(Base2New):\n    x = 1\n'
    registry.add_file(written(tmp_path, text, name="two"), kind="protocols")
    assert registry.facts("protocols", "two").attributes == {"x": 1}
    assert registry.load("protocols", "two").__name__ == "Two"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n1 / 0\n", "echo.py:2: ZeroDivisionError: division by zero."),
        ("x = 1\nx = = 1\n", "echo.py:2: SyntaxError: invalid syntax."),
        ("import no_such_module\n", "echo.py:1: ModuleNotFoundError: No module named 'no_such_module'."),
        ("def f():\n    raise ValueError('a\\nb')\n\nf()\n", "echo.py:2: ValueError: a b."),
        ("raise SystemExit(3)\n", "echo.py:1: SystemExit: 3."),
        ("x = 1\n", "must hold one public class that subclasses Protocol, but holds no class."),
        ("from promptbench.protocols.base2new import Base2New\n", "but holds no class."),
        (PLUGIN + "\nclass Other(Protocol):\n    pass\n", "but holds Echo and Other."),
    ],
)
def test_a_broken_plugin_is_told_with_file_line_and_reason(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    registry.add_file(path, kind="protocols")
    with pytest.raises(UsageError) as caught:
        registry.load("protocols", "echo")
    assert message in str(caught.value) and str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    if "fails to import" in str(caught.value):
        assert "promptbench_plugin.protocols.echo" not in sys.modules


def test_facts_of_a_file_that_cannot_be_parsed_are_an_error(tmp_path: Path) -> None:
    path = written(tmp_path, "x = = 1\n")
    registry.add_file(path)
    with pytest.raises(UsageError, match="echo.py:1: SyntaxError"):
        registry.facts("methods", "echo")


def test_a_file_with_a_taken_name_is_refused_unless_it_is_the_plugin_itself(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'base2new' is already one of the protocols"):
        registry.add_file(written(tmp_path, PLUGIN, name="base2new"), kind="protocols")
    assert registry.add_file(registry.facts("protocols", "base2new").path, kind="protocols") == "base2new"


@pytest.mark.parametrize("name", ["_echo", "my-echo"])
def test_a_file_that_cannot_be_a_plugin_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be named"):
        registry.add_file(written(tmp_path, PLUGIN, name=name))
    with pytest.raises(UsageError, match="There is no plugin file"):
        registry.add_file(tmp_path / "missing.py")


def test_installed_packages_bring_plugins_by_entry_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, PLUGIN, name="echo_outside")
    monkeypatch.syspath_prepend(str(tmp_path))
    group = "promptbench.protocols"
    entries = tuple(
        importlib.metadata.EntryPoint(name=name, value=value, group=group)
        for name, value in [
            ("echo_outside", "echo_outside"),
            ("base2new", "echo_outside"),
            ("other", "echo_outside"),
            ("gone", "gone"),
        ]
    )
    monkeypatch.setattr(registry, "_entry_points", lambda wanted: entries if wanted == group else ())
    assert {"echo_outside", "other", "gone"} <= set(registry.names("protocols"))
    assert registry.facts("protocols", "echo_outside").attributes["count"] == 3
    assert "echo_outside" not in sys.modules
    assert registry.load("protocols", "echo_outside").__name__ == "Echo"
    assert registry.load("protocols", "base2new").__name__ == "Base2New"
    with pytest.raises(UsageError, match="names the module echo_outside; name both alike"):
        registry.load("protocols", "other")
    for ask in (registry.load, registry.facts):
        with pytest.raises(UsageError, match="gone"):
            ask("protocols", "gone")
    del sys.modules["echo_outside"]


def test_listing_imports_neither_torch_nor_a_plugin() -> None:
    code = (
        "import sys; from promptbench import registry as r\n"
        "for kind in ('methods', 'datasets', 'protocols', 'scores'):\n"
        "    [r.facts(kind, name) for name in r.names(kind)]\n"
        "sys.exit(any(m == 'torch' or m.startswith('promptbench.protocols.') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_source_of_a_plugin_from_outside_has_a_digest(tmp_path: Path) -> None:
    path = written(tmp_path, PLUGIN)
    registry.add_file(path, kind="protocols")
    before = registry.source_digest("protocols", "echo")
    assert before == hashlib.sha256(path.read_bytes()).hexdigest()
    written(tmp_path, PLUGIN + "\n")
    assert registry.source_digest("protocols", "echo") != before
    assert registry.source_digest("protocols", "base2new") == ""
    path.unlink()
    with pytest.raises(UsageError, match="cannot be read"):
        registry.source_digest("protocols", "echo")
