"""What every method must keep, checked on one: for the tests of promptbench, and for yours.

    from promptbench import load_backbone
    from promptbench.checks.plugin import kit
    kit.check_method(MyMethod, load_backbone("mini"))     # [] or one sentence for each thing that is wrong

`promptbench check-plugin my_method.py` does the same to a file. The checks follow what a method declares: one that
trains nothing needs no gradients, one that does not transfer is asked for no other classes. They need neither data nor
a test framework. A check is a generator of what is wrong; the first line of its docstring is what holds otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, NamedTuple

from promptbench.checks.plugin import behaviour, source
from promptbench.checks.plugin.subject import (
    CLASSES,
    NotConcerned,
    Specimen,
    batch,
    predict,
    raised,
    specimen,
    take_steps,
)
from promptbench.clip.backbone import Backbone
from promptbench.method import Method, MethodConfig

__all__ = ["CHECKS", "CLASSES", "batch", "check_method", "examine", "predict", "run_check", "specimen", "take_steps"]

Check = Callable[[Specimen], Iterator[str]]


class Outcome(NamedTuple):
    """What one check found.

    Attributes:
        holds: What holds where it finds nothing, half a sentence.
        failures: What is wrong and what to do, one each.
        skipped: Why it was not made, or "".
    """

    holds: str
    failures: tuple[str, ...] = ()
    skipped: str = ""


def check_method(cls: type[Method], backbone: Backbone, config: MethodConfig | None = None) -> list[str]:
    """What is wrong with a method, a sentence each; empty if it keeps the contract.

    Args:
        cls: The method.
        backbone: To run it on; a small one does.
        config: Settings to check it with; without any, the defaults of its `Config`.
    """
    outcomes = examine(specimen(cls, backbone, config))
    return list(chain.from_iterable(sentences(cls, found) for found in outcomes))


def run_check(check: Check, cls: type[Method], backbone: Backbone, config: MethodConfig | None = None) -> list[str]:
    """Failures of one check; an exception on the way is one of them."""
    return sentences(cls, observe(check, specimen(cls, backbone, config).fresh(), cls))


def sentences(cls: type[Method], found: Outcome) -> list[str]:
    """The failures that a check of a method found, a sentence each."""
    return [f"{cls.__name__}, {found.holds}: {failure}" for failure in found.failures]


def examine(specimen: Specimen) -> Iterator[Outcome]:
    """The outcome of every check, in order; one that needs what another found broken is skipped."""
    broken: set[Check] = set()
    for check in CHECKS:
        if broken.intersection(NEEDS.get(check, ())):
            found = Outcome(holds(check), skipped="it needs what fails above")
            broken.add(check)
        else:
            found = observe(check, specimen.fresh(), specimen.cls)
            broken |= {check} if found.failures else set()
        yield found


def observe(check: Callable[[Any], Iterator[str]], subject: Any, cls: type) -> Outcome:
    """What a check finds in anything; an exception that the plugin `cls` causes is a failure."""
    failures: list[str] = []
    try:
        failures.extend(check(subject))
    except NotConcerned as reason:
        return Outcome(holds(check), skipped=str(reason))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever a plugin's code does, an exit included
        failures.append(raised(error, cls))
    return Outcome(holds(check), tuple(failures))


def holds(check: Callable[[Any], Iterator[str]]) -> str:
    """What a check's docstring says, as half a sentence."""
    sentence = (check.__doc__ or check.__name__).partition("\n")[0].rstrip(".")
    return sentence[0].lower() + sentence[1:]


CHECKS: tuple[Check, ...] = (
    source.check_docstring_names_paper_and_code,
    source.check_source_leaves_the_framework_its_work,
    source.check_category_and_recipes_are_declared,
    source.check_config_survives_yaml,
    source.check_recipes_and_presets_resolve,
    source.check_controls_are_there,
    behaviour.check_it_can_be_made_and_asked,
    behaviour.check_seed_alone_decides_the_first_values,
    behaviour.check_state_is_what_is_learned,
    behaviour.check_parameters_on_vit_b16,
    behaviour.check_same_images_twice_give_the_same_logits,
    behaviour.check_prediction_has_its_shape,
    behaviour.check_dense_features_leave_the_logits,
    behaviour.check_diagnostics_are_finite_numbers,
    behaviour.check_scoring_leaves_clip_alone,
    behaviour.check_loss_is_finite_and_named,
    behaviour.check_gradients_reach_everything_learned,
    behaviour.check_training_repeats_and_leaves_clip_alone,
    behaviour.check_tensors_are_made_where_the_backbone_is,
    behaviour.check_saved_tensors_give_the_same_logits,
    behaviour.check_without_training_images_it_gives_the_same_logits,
    behaviour.check_half_precision_tensors_load,
    behaviour.check_other_classes,
    behaviour.check_datasets_with_templates_of_their_own,
    behaviour.check_noise_reaches_what_reads_images,
    behaviour.check_learned_prompts_are_tokens,
    behaviour.check_image_features_know_no_classes,
    behaviour.check_cached_features_equal_fresh_ones,
)

MADE = behaviour.check_it_can_be_made_and_asked
SAME = behaviour.check_same_images_twice_give_the_same_logits
LOSS = behaviour.check_loss_is_finite_and_named
NEEDS: dict[Check, tuple[Check, ...]] = {
    source.check_recipes_and_presets_resolve: (source.check_config_survives_yaml,),
    **dict.fromkeys(CHECKS[CHECKS.index(MADE) + 1 :], (MADE,)),
    behaviour.check_prediction_has_its_shape: (SAME,),
    behaviour.check_dense_features_leave_the_logits: (SAME,),
    behaviour.check_gradients_reach_everything_learned: (LOSS,),
    behaviour.check_training_repeats_and_leaves_clip_alone: (LOSS,),
    behaviour.check_tensors_are_made_where_the_backbone_is: (SAME, LOSS),
    behaviour.check_saved_tensors_give_the_same_logits: (SAME,),
    behaviour.check_half_precision_tensors_load: (SAME,),
    behaviour.check_other_classes: (SAME,),
    behaviour.check_datasets_with_templates_of_their_own: (LOSS,),
    behaviour.check_noise_reaches_what_reads_images: (SAME,),
    behaviour.check_learned_prompts_are_tokens: (SAME,),
    behaviour.check_cached_features_equal_fresh_ones: (SAME, LOSS),
}
