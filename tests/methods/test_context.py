"""`ctx_init` may be a template, or `dataset`: that of the classes trained on."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import promptbench as pb
from promptbench import registry
from promptbench.clip import prompts
from promptbench.config import UsageError
from promptbench.data.class_names import ClassNames
from promptbench.method import MethodConfig, fit_to_backbone, instantiate
from promptbench.recipe import resolve
from promptbench.runs.plan import fit_settings

START = {"ctx_init": "dataset"}
NAMES = ("red disc", "blue_square", "sea_lion")
TEMPLATES = {"a neon sign of a {}.": 5, "a {} fabric.": 1, "a photo of a {} texture, jack-o'-lantern style": 4}
LONG_WORD = "a jack-o'-lantern sketch of {} there"


def started(cls: type[pb.Method]) -> list[str]:
    """The fields of a method's Config that take `dataset`."""
    return [field.name for field in dataclasses.fields(cls.Config) if field.metadata.get("template")]


def counted(cls: type[pb.Method]) -> list[str]:
    """The fields of a method's Config that say how many of the tokens are learned."""
    return [field.name for field in dataclasses.fields(cls.Config) if field.metadata.get("tokens_of")]


METHODS = [name for name in registry.names("methods") if started(registry.load("methods", name))]
COUNTED = [name for name in METHODS if counted(registry.load("methods", name))]


@pytest.fixture(scope="module")
def mini() -> pb.Backbone:
    return pb.load_backbone("mini")


def shallow(name: str) -> dict[str, int]:
    """Settings that leave the layers after the first alone: what is learned there starts at random."""
    fields = dataclasses.fields(registry.load("methods", name).Config)
    return {field.name: 1 for field in fields if field.name.startswith("depth")}


def made(name: str, backbone: pb.Backbone, template: str | tuple[str, ...], **config: Any) -> pb.Method:
    names = ClassNames(NAMES, template=template)
    return pb.create_method(name, backbone, names, **{"ctx_init": "dataset", **shallow(name), **config})


def context_of(method: Any) -> Tensor:
    """What is learned in place of the words (n, d), or added to them."""
    found: Tensor = method.ctx if hasattr(method, "ctx") else method.text_prompts[0]
    return found


@torch.no_grad()
def text_of(method: pb.Method, backbone: pb.Backbone) -> Tensor:
    """Normalised text features (K, D), what an image adds to the context being zero."""
    if method.has_text_features:
        return F.normalize(method.text_features(), dim=-1)
    for key, parameter in method.named_parameters():
        if key != "ctx":
            parameter.zero_()
    (text,) = method.conditional_text(torch.ones(1, backbone.embed_dim))
    return F.normalize(text, dim=-1)


@torch.no_grad()
def zeroshot_of(backbone: pb.Backbone, template: str, names: tuple[str, ...] = NAMES) -> Tensor:
    return pb.create_method("zeroshot", backbone, ClassNames(names, template=template)).text_features()


def test_every_method_with_a_context_is_there() -> None:
    assert {"coop", "cocoop", "maple", "ivlp", "promptsrc", "mutual", "dpl"} <= set(METHODS)
    assert set(METHODS) - set(COUNTED) == {"dpl"}  # all its words are prompts
    for name in COUNTED:
        cls = registry.load("methods", name)
        (field,) = [field for field in dataclasses.fields(cls.Config) if field.name in counted(cls)]
        assert field.metadata["tokens_of"] in started(cls)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", METHODS)
def test_before_training_its_texts_are_those_of_zeroshot(name: str, template: str, mini: pb.Backbone) -> None:
    method = made(name, mini, template)
    assert context_of(method).shape == (TEMPLATES[template], mini.text_width)
    torch.testing.assert_close(text_of(method, mini), zeroshot_of(mini, template), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", METHODS)
def test_other_classes_are_read_in_the_sentence_of_the_training(name: str, mini: pb.Backbone) -> None:
    template, others = "a photo of a {} texture.", ("green ring", "owl")
    method = made(name, mini, template)
    method.set_classes(ClassNames(others, template="a diagram of a {} without a texture."))
    torch.testing.assert_close(text_of(method, mini), zeroshot_of(mini, template, others), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", METHODS)
def test_words_and_a_template_that_ends_with_the_name_are_the_same(name: str, mini: pb.Backbone) -> None:
    words, template = (made(name, mini, "{} x", ctx_init=start) for start in ("a photo of a", "a photo of a {}."))
    assert all(map(torch.equal, words.parameters(), template.parameters()))
    assert torch.equal(text_of(words, mini), text_of(template, mini))


@pytest.mark.parametrize("name", METHODS)
def test_the_first_template_of_an_ensemble_decides(name: str, mini: pb.Backbone) -> None:
    ensemble, one = made(name, mini, ("a neon {}.", "{} x")), made(name, mini, "a neon {}.")
    assert torch.equal(text_of(ensemble, mini), text_of(one, mini))


@pytest.mark.parametrize("words", [" a photo of a", "a photo of a_", "a  photo", "a photo of a  {}.", "{ } of a ", " "])
@pytest.mark.parametrize("name", METHODS)
def test_blanks_that_would_count_as_words_are_refused(name: str, words: str, mini: pb.Backbone) -> None:
    with pytest.raises(UsageError, match="with blanks at an end or several in a row, which would count as words"):
        made(name, mini, "a {} x", ctx_init=words)


def test_tokens_are_counted_where_a_word_has_several(tiny: pb.Backbone) -> None:
    before = LONG_WORD.partition("{}")[0]
    tokens = int(tiny.embed_text([before]).eot) - 1
    assert tokens > len(before.split())
    for name in ("coop", "maple"):
        method = made(name, tiny, LONG_WORD)
        assert method.ctx.shape == (tokens, tiny.text_width)
        torch.testing.assert_close(text_of(method, tiny), zeroshot_of(tiny, LONG_WORD), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", METHODS)
def test_what_no_context_can_start_from_is_refused(name: str, mini: pb.Backbone) -> None:
    for start in ("dataset", "{} fabric."):
        with pytest.raises(
            UsageError, match=r"'\{\} fabric\.' has no word before the class name.*choose another ctx_init"
        ):
            made(name, mini, "{} fabric.", ctx_init=start)
    with pytest.raises(UsageError, match="has places for several class names"):
        made(name, mini, "{} fabric.", ctx_init="a {} or {}")
    assert context_of(made(name, mini, "{} fabric.", ctx_init="a photo of a")).shape[1] == mini.text_width


@pytest.mark.parametrize("name", COUNTED)
def test_a_number_of_tokens_is_refused_where_it_was_asked_for_and_is_another(name: str, mini: pb.Backbone) -> None:
    (field,) = counted(registry.load("methods", name))
    assert made(name, mini, "a neon sign of a {}.", **{field: 5}).ctx.shape[0] == 5
    with pytest.raises(UsageError, match=f"{field} is 3, but the dataset's template 'a neon sign of a {{}}.' has 5 to"):
        made(name, mini, "a neon sign of a {}.", **{field: 3})


def test_a_number_that_nobody_asked_for_gives_way(mini: pb.Backbone) -> None:
    method = pb.create_method("ivlp@promptsrc", mini, ClassNames(NAMES, template="a {} fabric."), ctx_init="dataset")
    assert method.config.n_ctx_text is None and method.ctx.shape[0] == 1
    assert method.texts_told == "dataset" and pb.create_method("coop", mini, NAMES).texts_told == "generic"
    assert [len(prompt) for prompt in method.text_prompts] == [1] * (mini.text_depth - 1)
    assert all(len(prompt) == 4 for prompt in method.visual_prompts)


def test_a_template_says_where_the_name_goes(mini: pb.Backbone) -> None:
    with pytest.raises(UsageError, match="class_token_position=middle puts the name elsewhere than the template"):
        made("coop", mini, "a neon sign of a {}.", class_token_position="middle")
    with pytest.raises(UsageError, match="csc=true takes random contexts"):
        made("coop", mini, "a neon sign of a {}.", csc=True)


def test_any_config_says_so_by_the_metadata_of_its_fields(mini: pb.Backbone) -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        start: str = dataclasses.field(default="dataset", metadata={"template": True})
        other: str = "dataset"

    class Example(pb.Method):
        pass

    config = fit_to_backbone(Config(), mini, explicit=())
    seen = instantiate(Example, config, mini, ClassNames(NAMES, template="a {} x"), 0).config
    assert seen == Config(start="a {} x") and seen.other == "dataset"
    assert instantiate(Example, config, mini, list(NAMES), 0).config.start == "a photo of a {}."


def test_a_recipe_s_number_gives_way_and_the_origin_says_so() -> None:
    """CoOp's few-shot recipe asks for 16 random tokens."""
    asked = resolve(registry.load("methods", "coop"), "coop", protocol="few_shot", dataset="dtd", assignments=START)
    settings = fit_settings(asked, "mini")
    assert (asked.config.n_ctx, settings.config.n_ctx, settings.config.ctx_init) == (16, None, "dataset")
    assert settings.provenance["config.n_ctx"] == "recipe (authors), the words decide"


def test_the_longest_start_of_maple_stays_random_unless_the_dataset_gives_it(mini: pb.Backbone) -> None:
    template = "a neon sign of a {}."
    assert prompts.words_for(template, 5) == "" and prompts.words_for(template, None) == template
