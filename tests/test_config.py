from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from typing import Any, Literal

import pytest
import yaml

from promptbench.config import (
    UsageError,
    build,
    describe_fields,
    load_yaml,
    nearest,
    parse_assignment,
    to_mapping,
    typed,
    unknown,
)


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int = 1


@dataclass(frozen=True, kw_only=True)
class Example:
    depth: int
    lr: float = field(default=2e-3, metadata={"source": "Table 1"})
    csc: bool = False
    words: str = ""
    position: Literal["end", "middle"] = "end"
    dropout: float | None = None
    topk: tuple[int, ...] = (5, 10)
    pair: tuple[int, str] = (1, "a")
    inner: Inner = Inner()
    extra: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.depth < 0:
            raise ValueError(f"'depth' must be at least 0, not {self.depth}.")


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("lr", "2e-3", 0.002),
        ("lr", 1, 1.0),
        ("depth", "3", 3),
        ("dropout", "none", None),
        ("dropout", None, None),
        ("dropout", "0.5", 0.5),
        ("topk", [1, 2], (1, 2)),
        ("topk", "1,2", (1, 2)),
        ("topk", 7, (7,)),
        ("topk", [], ()),
        ("pair", [2, "b"], (2, "b")),
        ("inner", {"size": 4}, Inner(size=4)),
        ("inner", Inner(size=5), Inner(size=5)),
        ("extra", {"a": [1]}, {"a": [1]}),
        ("position", "middle", "middle"),
    ],
)
def test_a_value_is_converted_to_the_type_of_its_field(name: str, given: Any, expected: Any) -> None:
    value = getattr(build(Example, {"depth": 1, name: given}, "here"), name)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("name", "given", "takes"),
    [
        ("depth", True, "an integer"),
        ("depth", 2.5, "an integer"),
        ("depth", "three", "an integer"),
        ("lr", "fast", "a number"),
        ("lr", True, "a number"),
        ("lr", float("nan"), "a number"),
        ("lr", 10**400, "a number"),
        ("csc", 1, "true or false"),
        ("words", 5, "text"),
        ("words", None, "text"),
        ("position", "front", "one of end, middle"),
        ("dropout", "much", "a number or none"),
        ("topk", "1,x", "a list (each item an integer)"),
        ("pair", [1], "a list of 2 items"),
        ("extra", 3, "a mapping of names to values"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_field_type_and_place(name: str, given: Any, takes: str) -> None:
    with pytest.raises(UsageError) as caught:
        build(Example, {"depth": 1, name: given}, "file.yaml")
    message = str(caught.value)
    assert message.startswith(f"file.yaml: {name!r} takes {takes}, not ")
    assert "\n" not in message and len(message) < 200


def test_an_unknown_key_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(UsageError, match=r"^here: Unknown key 'dept'\. Did you mean 'depth'\?$"):
        build(Example, {"dept": 1}, "here")
    with pytest.raises(UsageError, match=r"^here: inner: Unknown key 'sice'\. Did you mean 'size'\?$"):
        build(Example, {"depth": 1, "inner": {"sice": 1}}, "here")


def test_missing_fields_and_things_that_are_no_mapping_are_refused() -> None:
    with pytest.raises(UsageError, match="here: 'depth' must be given"):
        build(Example, {}, "here")
    with pytest.raises(UsageError, match="takes a mapping"):
        build(Example, [1], "here")  # type: ignore[arg-type]


def test_what_the_class_refuses_is_told_with_the_place() -> None:
    with pytest.raises(UsageError, match=r"^here: 'depth' must be at least 0, not -1\.$"):
        build(Example, {"depth": -1}, "here")


def test_typed_leaves_out_what_is_not_given() -> None:
    assert typed(Example, {"lr": "1e-1"}, "here") == {"lr": 0.1}


def test_a_config_survives_yaml() -> None:
    example = build(Example, {"depth": 1, "topk": "3,4", "inner": {"size": 2}, "extra": {"a": 1}}, "here")
    again = build(Example, yaml.safe_load(yaml.safe_dump(to_mapping(example))), "here")
    assert again == example
    assert to_mapping(example)["topk"] == [3, 4]


def test_fields_are_described_with_type_default_and_source() -> None:
    facts = {fact.name: fact for fact in describe_fields(Example)}
    assert facts["depth"].default is MISSING
    assert facts["lr"] == ("lr", "float", 2e-3, "Table 1")
    assert facts["dropout"].type == "float | None"
    assert facts["extra"].default == {}


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("coop.n_ctx=4", ("coop", "n_ctx"), 4),
        ("coop@200.lr=2e-3", ("coop@200", "lr"), "2e-3"),
        ("coop.csc=true", ("coop", "csc"), True),
        ("gallop.dropout=null", ("gallop", "dropout"), None),
        ("coop.ctx_init=", ("coop", "ctx_init"), ""),
        ("coop.ctx_init=a photo of a", ("coop", "ctx_init"), "a photo of a"),
        ("zeroshot.template={} texture.", ("zeroshot", "template"), "{} texture."),
        ("zeroshot.template=x: {}", ("zeroshot", "template"), "x: {}"),
        ("gallop.topk=[5, 10]", ("gallop", "topk"), [5, 10]),
        ("gallop.topk=5,10", ("gallop", "topk"), "5,10"),
        ("a.day=2020-01-01", ("a", "day"), "2020-01-01"),
        ("a.day=2020-13-77", ("a", "day"), "2020-13-77"),
        ("a.sum=1=1", ("a", "sum"), "1=1"),
    ],
)
def test_an_assignment_is_split_and_its_value_read(text: str, path: tuple[str, ...], value: Any) -> None:
    assert parse_assignment(text) == (path, value)


@pytest.mark.parametrize("text", ["coop", "=4", "coop.=4", ".n_ctx=4", ""])
def test_what_is_no_assignment_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no assignment; write method.field=value"):
        parse_assignment(text)


def test_the_nearest_name_is_offered_and_otherwise_all_are_listed() -> None:
    assert nearest("mapel", ["maple", "coop"]) == " Did you mean 'maple'?"
    assert nearest("MAPLE", ["maple"]) == " Did you mean 'maple'?"
    assert nearest("xyz", ["maple"]) == ""
    assert str(unknown("method", "xyz", ["maple", "coop"])) == "Unknown method 'xyz'. Known: coop, maple."
    assert str(unknown("method", 3, [])) == "Unknown method '3'. There is none."


def test_a_yaml_text_that_would_take_long_is_refused() -> None:
    assert len(load_yaml("[" + "0," * 10_000 + "]")) == 10_000
    with pytest.raises(ValueError, match="longer than 262144 characters"):
        load_yaml("[" + "0," * 140_000 + "]")
