"""What the conformance kit sees when it runs a method: scores, training, saving, other classes, cached features."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain

import torch

from promptbench.checks.plugin.pretended import DEVICE, PretendedGpu
from promptbench.checks.plugin.subject import (
    CLASSES,
    OTHER_CLASSES,
    NotConcerned,
    Specimen,
    batch,
    changed,
    learned,
    loss_terms,
    predict,
    raised,
    some,
    take_steps,
    vit_b16,
    weights_of,
)
from promptbench.clip.controls import randomize
from promptbench.clip.image_tower import Images
from promptbench.data.class_names import ClassNames
from promptbench.method import Method, Prediction, fit_to_backbone, worded
from promptbench.recipe import NOISE

ROUNDING = 1e-4  # of logits up to 100, when the same image comes in another batch
TEMPLATES = ("itap of my {}, indoors.", ("a photo of a {}.", "art of the {}."))
TEMPLATES_COME_SO = "self.templates_of_classes() gives all of them, prompts.ensemble encodes any number"
HALF = 0.01  # of the largest logit, when learned tensors were stored in half precision

# Making it, and its state ---------------------------------------------------------------------------------------------


def check_it_can_be_made_and_asked(specimen: Specimen) -> Iterator[str]:
    """It can be made, told its classes, shown training images and asked for scores."""
    prediction = predict(specimen.make(), specimen.images())
    if not isinstance(prediction, Prediction):
        yield f"forward returns a {type(prediction).__name__}; return a Prediction, as self.classify makes one"


def check_seed_alone_decides_the_first_values(specimen: Specimen) -> Iterator[str]:
    """The seed alone decides the first values of learned tensors."""
    before = torch.get_rng_state()
    one, other = specimen.make(seed=3).state_dict(), specimen.make(seed=3).state_dict()
    if not torch.equal(before, torch.get_rng_state()):
        yield "making it changes torch's global generator; seed nothing in it"
    different = [name for name, tensor in one.items() if not torch.equal(tensor, other[name])]
    if different:
        yield f"the same seed gives other first values of {some(different)}; draw them with torch's global generator"


def check_state_is_what_is_learned(specimen: Specimen) -> Iterator[str]:
    """The state dict, which is the checkpoint, holds what is learned or kept and nothing else."""
    method, cls = specimen.make(), specimen.cls
    tensors = learned(method)
    kept = set(cls.kept or ())
    surplus = set(method.state_dict()) - set(tensors) - kept
    if surplus:
        yield (
            f"the state dict holds {some(sorted(surplus))}, which is not learned; keep class tokens and the like as "
            "plain attributes, without register_buffer or nn.Parameter, or name in `kept` what takes the training "
            "images to make again"
        )
    lost = kept - set(method.state_dict())
    if lost:
        yield f"`kept` names {some(sorted(lost))}, which the state dict does not hold; make a buffer of it in __init__"
    if bool(tensors) != cls.trains:
        yield f"`trains` is {cls.trains}, and it has {len(tensors)} learned tensors; one of the two is wrong"
    for name, parameter in tensors.items():
        if parameter.dtype != torch.float32 or parameter.device != specimen.backbone.device:
            yield f"{name} is {parameter.dtype} on {parameter.device}; make it without dtype and device"
    grouped = chain.from_iterable(group["params"] for group in method.parameter_groups())
    if set(map(id, grouped)) != set(map(id, tensors.values())):
        yield "parameter_groups() leaves out learned tensors, or holds others; give each to one group"
    if not set(map(id, method.official_parameters().values())) <= set(map(id, tensors.values())):
        yield "official_parameters() names tensors that are not learned; leave them out"


def check_parameters_on_vit_b16(specimen: Specimen) -> Iterator[str]:
    """The number of learned parameters on ViT-B/16 is the one that it declares."""
    cls = specimen.cls
    if not any("parameters_vit_b16" in vars(base) for base in cls.__mro__ if base is not Method):
        raise NotConcerned("it declares no `parameters_vit_b16`, which `promptbench list methods` would show")
    large = vit_b16()
    method = cls(worded(fit_to_backbone(cls.Config(), large, explicit=()), large, CLASSES), large)
    counted = sum(parameter.numel() for parameter in method.parameters())
    if counted != cls.parameters_vit_b16:
        yield f"`parameters_vit_b16` is {cls.parameters_vit_b16}, and it learns {counted}; write that number"


# What it says of images -----------------------------------------------------------------------------------------------


def check_same_images_twice_give_the_same_logits(specimen: Specimen) -> Iterator[str]:
    """The same images twice give the same logits, bit for bit."""
    method, images = specimen.moved(), specimen.images()
    if not torch.equal(predict(method, images, draws=1).logits, predict(method, images, draws=2).logits):
        yield "they give other logits; draw nothing at random unless self.training"


def check_prediction_has_its_shape(specimen: Specimen) -> Iterator[str]:
    """A prediction has its shape, and an image's scores are its own."""
    method, images = specimen.moved(), specimen.images()
    prediction = predict(method, images)
    shape = (len(images), len(CLASSES))
    scores = {"logits": prediction.logits, "cosines": prediction.cosines}
    for name, tensor in scores.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape or tensor.dtype != torch.float32:
            yield f"{name} are {tensor.dtype} {tuple(tensor.shape)}; make them torch.float32 {shape}, images by classes"
        elif not tensor.isfinite().all():
            yield f"{name} are not finite; look for a division by zero or the logarithm of zero"
    alone = torch.cat([predict(method, image.unsqueeze(0)).logits for image in images])
    if not torch.allclose(alone, prediction.logits, atol=ROUNDING, rtol=ROUNDING):
        yield "an image's logits depend on the images beside it; compute nothing over the batch"
    if not torch.equal(predict(method, Images(images)).logits, prediction.logits):
        yield "pixels and an Images batch of them give other logits; hand `images` on to backbone.encode_image"


def check_dense_features_leave_the_logits(specimen: Specimen) -> Iterator[str]:
    """Logits stay the same where dense features are asked for."""
    method, images = specimen.moved(), specimen.images()
    dense = predict(method, Images(images, dense=True))
    if not torch.allclose(dense.logits, predict(method, images).logits, atol=ROUNDING, rtol=ROUNDING):
        yield "they are others; score the global feature, ImageFeatures.cls, whether or not there is a local one"
    local = dense.local
    if local is not None and (local.dim() != 3 or (local.shape[0], local.shape[2]) != (len(images), len(CLASSES))):
        yield f"`local` is {tuple(local.shape)}; make it (B, P, K): images, patches, classes"


def check_diagnostics_are_finite_numbers(specimen: Specimen) -> Iterator[str]:
    """What it reports of an evaluation are finite numbers by name."""
    with torch.no_grad():
        figures = specimen.moved().diagnostics(specimen.images())
    wrong = [f"{name!r}: {v!r}" for name, v in figures.items() if not isinstance(v, float) or not math.isfinite(v)]
    if wrong:
        yield f"`diagnostics` returns {some(wrong)}; return finite Python floats, as float(tensor) gives"


def check_scoring_leaves_clip_alone(specimen: Specimen) -> Iterator[str]:
    """Scoring images leaves CLIP bit-identical."""
    before = weights_of(specimen.backbone)
    predict(specimen.make(), specimen.images())
    touched = changed(specimen.backbone, before)
    if touched:
        yield f"it changed {some(touched)} of CLIP; the backbone is frozen: learn parameters of your own"


# Training -------------------------------------------------------------------------------------------------------------


def check_loss_is_finite_and_named(specimen: Specimen) -> Iterator[str]:
    """The loss is finite and named."""
    specimen.trained()
    images, labels = batch(specimen.backbone)
    for method in (specimen.make(), specimen.moved()):
        terms = loss_terms(method, images, labels)
        if not isinstance(terms, dict) or not terms:
            yield f'loss() returns a {type(terms).__name__}; return its terms by name, such as {{"ce": ...}}'
            return
        wrong = [f"{name!r} is {shown(term)}" for name, term in terms.items() if term.dim() or not term.isfinite()]
        if wrong:
            yield f"the term {some(wrong)}; make every term one finite number, a mean over the batch"
            return


def shown(term: torch.Tensor) -> str:
    """A term of a loss in words."""
    return f"of shape {tuple(term.shape)}" if term.dim() else str(term.item())


def check_gradients_reach_everything_learned(specimen: Specimen) -> Iterator[str]:
    """Gradients reach every learned tensor, and none of CLIP's."""
    specimen.trained()
    method, (images, labels) = specimen.moved(), batch(specimen.backbone)
    torch.stack(list(loss_terms(method, images, labels).values())).sum(dim=0).backward()
    gradients = {name: parameter.grad for name, parameter in learned(method).items()}
    missing = [name for name, gradient in gradients.items() if gradient is None or not gradient.any()]
    if missing:
        yield f"none reaches {some(missing)}; use it in the loss, without detach or no_grad on the way, or remove it"
    infinite = [name for name, gradient in gradients.items() if gradient is not None and not gradient.isfinite().all()]
    if infinite:
        yield f"the gradient of {some(infinite)} is not finite; look for a square root or a norm of zero"
    if any(parameter.grad is not None or parameter.requires_grad for parameter in specimen.backbone.clip.parameters()):
        yield "CLIP's weights get gradients; leave their requires_grad alone"


def check_training_repeats_and_leaves_clip_alone(specimen: Specimen) -> Iterator[str]:
    """Training twice gives the same tensors and leaves CLIP bit-identical."""
    specimen.trained()
    images, labels = batch(specimen.backbone)
    one, other = specimen.make(), specimen.make()
    clip = weights_of(specimen.backbone)
    first = {name: tensor.clone() for name, tensor in one.state_dict().items()}
    take_steps(one, images, labels, steps=2)
    touched = changed(specimen.backbone, clip)
    if touched:
        yield f"training changed {some(touched)} of CLIP; the backbone is frozen: learn parameters of your own"
        return
    take_steps(other, images, labels, steps=2)
    trained = one.state_dict()
    if set(trained) != set(first):
        yield "training changed which tensors the state dict holds; make all of them in __init__ or prepare"
    if any(not torch.equal(tensor, other.state_dict()[name]) for name, tensor in trained.items()):
        yield "the same training gives other tensors; draw with torch's global generator, which the trainer seeds"
    if all(name in first and torch.equal(tensor, first[name]) for name, tensor in trained.items()):
        yield "two steps of SGD change no learned tensor; use them in the loss"


def check_tensors_are_made_where_the_backbone_is(specimen: Specimen) -> Iterator[str]:
    """On a GPU, every tensor is made where the backbone is, and scores stay the same."""
    images, labels = batch(specimen.backbone)
    expected = predict(specimen.fresh().moved(), images).logits  # of a CLIP that other checks have left alone
    with PretendedGpu():
        elsewhere = specimen.fresh()
        elsewhere.backbone.to(DEVICE)
        method = elsewhere.moved()
        logits = predict(method, images.to(DEVICE)).logits
        if logits.device != DEVICE:
            yield "its logits are on the CPU; leave tensors where the backbone makes them"
        elif not torch.equal(logits.cpu(), expected):
            yield "there it gives other logits; let nothing depend on the device"
        if specimen.cls.trains:
            take_steps(method, images.to(DEVICE), labels.to(DEVICE), steps=1)


# Saving and loading ---------------------------------------------------------------------------------------------------


def check_saved_tensors_give_the_same_logits(specimen: Specimen) -> Iterator[str]:
    """Saved and loaded into another instance, it gives the same logits."""
    method, images, other = specimen.moved(), specimen.images(), specimen.make(seed=5)
    predict(other, images)  # text features that were encoded before loading must not survive it
    other.load_state_dict(method.state_dict())
    if not torch.equal(predict(method, images).logits, predict(other, images).logits):
        yield "it gives others; keep everything learned in parameters, and nothing computed from them across loading"


def check_without_training_images_it_gives_the_same_logits(specimen: Specimen) -> Iterator[str]:
    """Loaded where no training image is, as `predict` does, it gives the same logits."""
    if not specimen.cls.prepares:
        raise NotConcerned("it looks at no training image before its training")
    if specimen.cls.kept is None:
        yield (
            "`prepare` makes what nothing stores, so that neither `predict` nor `export` can use it: make buffers of "
            "it, of size 0 in __init__, and name them in `kept`; () where what is learned is enough"
        )
        return
    method, images, other = specimen.moved(), specimen.images(), specimen.unshown(seed=5)
    stored = method.state_dict()
    other.make_room(stored)
    other.load_state_dict(stored)
    if not torch.equal(predict(method, images).logits, predict(other, images).logits):
        yield "it gives others; name in `kept` every buffer that `prepare` fills and scores are made of"


def check_half_precision_tensors_load(specimen: Specimen) -> Iterator[str]:
    """Tensors stored in half precision load into float32 and give nearly the same logits."""
    method, images, other = specimen.moved(), specimen.images(), specimen.make(seed=5)
    other.load_state_dict({name: tensor.half() for name, tensor in method.state_dict().items()})
    turned = [name for name, parameter in learned(other).items() if parameter.dtype != torch.float32]
    if turned:
        yield f"loading turned {some(turned)} into half precision; copy into parameters instead of replacing them"
        return
    exact, rounded = predict(method, images).logits, predict(other, images).logits
    if not torch.allclose(rounded, exact, rtol=0, atol=HALF * float(exact.abs().max())):
        yield "the logits differ by more than rounding does; keep learned tensors of moderate size (below 65504)"


# Other classes, cached features ---------------------------------------------------------------------------------------


def check_datasets_with_templates_of_their_own(specimen: Specimen) -> Iterator[str]:
    """Datasets may have a template of their own, or several."""
    images, labels = batch(specimen.backbone)
    for template in TEMPLATES:
        own = replace(specimen, class_names=ClassNames(CLASSES, template))
        said = f"with {'several templates' if isinstance(template, tuple) else f'the template {template!r}'}"
        try:
            method = own.make()
            prediction = predict(method, images)
            if specimen.cls.trains:
                take_steps(method, images, labels, steps=1)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # whatever a method's code makes of a template
            yield f"{said} {raised(error, specimen.cls)}; {TEMPLATES_COME_SO}"
            continue
        if tuple(prediction.logits.shape) != (len(images), len(CLASSES)):
            yield f"{said} the logits are {tuple(prediction.logits.shape)}; {TEMPLATES_COME_SO}"


def check_other_classes(specimen: Specimen) -> Iterator[str]:
    """Other class names and another number of classes can be scored, and the first ones again."""
    method, images = specimen.moved(), specimen.images()
    before = predict(method, images).logits
    if method.transfers is True:
        yield from wrong_with_other_classes(method, images, OTHER_CLASSES)
    elif not method.transfers_reason:
        yield f"`transfers` is {method.transfers} and there is no `transfers_reason`; say why, for the tables"
    if method.transfers == "subset":
        yield from wrong_with_other_classes(method, images, CLASSES[1:])
        if not method.refusal(OTHER_CLASSES):
            yield "classes without a row of their own are not refused; leave `refusal` to the framework"
    method.set_classes(CLASSES)
    if not torch.equal(predict(method, images).logits, before):
        yield "setting the same classes again gives other logits; set_classes must change no learned tensor"


def wrong_with_other_classes(method: Method, images: torch.Tensor, names: Sequence[str]) -> Iterator[str]:
    """What goes wrong once `method` is told these classes."""
    method.set_classes(names)
    other = predict(method, images).logits
    wanted = (len(images), len(names))
    if tuple(other.shape) != wanted or not other.isfinite().all():
        yield (
            f"after set_classes with {wanted[1]} other names the logits are {tuple(other.shape)}, not {wanted}, or not "
            "finite; make the class tokens anew in set_classes"
        )
        return
    method.set_classes(names[::-1])
    if not torch.allclose(predict(method, images).logits.flip(1), other, atol=ROUNDING, rtol=ROUNDING):
        yield "the order of the classes changes their logits; make each class's tokens from its name alone"
    method.set_classes(names[:1])
    if tuple(predict(method, images).logits.shape) != (len(images), 1):
        yield "a single class cannot be scored; squeeze no axis of classes"


def check_noise_reaches_what_reads_images(specimen: Specimen) -> Iterator[str]:
    """In the control `noise`, what it makes prompts from is noise."""
    if not specimen.cls.image_conditional:
        raise NotConcerned("it makes no prompts from images, or does not say so by `image_conditional`")
    images = specimen.images()
    own, told = (predict(replace(specimen, condition=of).moved(), images) for of in ("", NOISE))
    if torch.equal(own.logits, told.logits):
        yield "noise gives the same logits; make prompts from self.condition(features), which the control replaces"


def check_learned_prompts_are_tokens(specimen: Specimen) -> Iterator[str]:
    """Its learned prompts are tokens of a tower, and others give other logits."""
    if not specimen.cls.learned_prompts:
        raise NotConcerned("it learns no prompts, or does not name them in `learned_prompts`")
    method, images = specimen.moved(), specimen.images()
    found = method.prompts_learned()
    if not found:
        yield f"`learned_prompts` names {some(specimen.cls.learned_prompts)}, and no learned tensor begins so"
        return
    widths = {specimen.backbone.text_width, specimen.backbone.vision_width}
    others = [name for name, tensor in found.items() if tensor.dim() < 2 or tensor.shape[-1] not in widths]
    if others:
        yield f"`learned_prompts` names {some(others)}, whose rows have no tower's width; name prompts alone"
        return
    before = predict(method, images).logits
    randomize(found, seed=1)
    if torch.equal(predict(method, images).logits, before):
        yield "random prompts give the same logits; keep nothing that was made of the learned ones"


def check_image_features_know_no_classes(specimen: Specimen) -> Iterator[str]:
    """Image features are the same for other classes."""
    if not specimen.cls.encodes_images_apart:
        raise NotConcerned("it has a forward of its own")
    method, images = specimen.moved(), specimen.images()
    if not method.transfers:
        raise NotConcerned("it does not transfer")
    features = []
    for names in (CLASSES, CLASSES[1:] if method.transfers == "subset" else OTHER_CLASSES):
        method.set_classes(names)
        with torch.no_grad():
            features.append(method.encode_images(images).cls)
    if not torch.equal(*features):
        yield "encode_images depends on the classes, and is called once for several lists of them; override forward"


def check_cached_features_equal_fresh_ones(specimen: Specimen) -> Iterator[str]:
    """Cached image features and pixels give the same logits, and it trains on either."""
    method, (images, labels) = specimen.moved(), batch(specimen.backbone)
    if not method.frozen_image_tower:
        raise NotConcerned("`frozen_image_tower` is False, so its image features are never cached")
    with torch.no_grad():
        features = specimen.backbone.encode_image(images, local=method.reads_dense)
    cached = Images(features=replace(features, patches=None))  # as the cache keeps them
    way_out = (
        "use images through backbone.encode_image(images) alone, write `reads_dense = True` if it takes dense "
        "features, or `frozen_image_tower = False`"
    )
    try:
        if not torch.equal(predict(method, images).logits, predict(method, cached).logits):
            yield f"cached features give other logits; {way_out}"
        if specimen.cls.trains:
            take_steps(method, cached, labels, steps=1)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever a method's code does without pixels
        yield f"with cached features {raised(error, specimen.cls)}; {way_out}"
