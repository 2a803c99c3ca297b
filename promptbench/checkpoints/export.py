"""A trained prompt as a folder for others: tensors, text features, class names, the result, and a card.

Where the method scores as CLIP does, with other text, plain open_clip can use the text features. The card says so, and
what the prompt is, as Markdown with the head that the Hugging Face hub reads.

Letters: K classes, D joint dimension.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from promptbench import __version__, registry
from promptbench.checkpoints.load import CARD, CLASSES, FILES, PROMPTS, RESULT, TEXT, Trained
from promptbench.clip.backbone import Backbone
from promptbench.clip.load import EMBEDDED, RANDOM, split_name
from promptbench.config import UsageError, overrides, path_of
from promptbench.data.class_names import ClassNames
from promptbench.method import Method
from promptbench.results.result import Result
from promptbench.results.spec import Spec, to_plain

TOLERANCE = 1e-4  # of logits that are to be those of plain CLIP

MARKS = {
    "transferred": "† The recipe was transferred from another protocol or backbone.",
    "ours": "‡ The recipe was chosen by promptbench, not by the method's authors.",
}
RECONSTRUCTED = (
    "§ Reconstructed without its authors' code; compare with the paper before citing, and with no published figure."
)

_SHOWN = 12  # class names in the card
_NOT_IN_RECIPE = ("origin", "overrides", "source")


def export(
    trained: Trained, folder: Path | str, class_names: Sequence[str] | None = None, *, force: bool = False
) -> Path:
    """Write a trained prompt as a folder, which appears whole or not at all; returns the folder.

    Args:
        trained: From `load`, of a result file or an exported folder.
        folder: New or empty.
        class_names: Whose text features to write; None for those of the training.
        force: Replace an earlier export.

    Raises:
        UsageError: The folder holds something, the method cannot score these classes, or the result is not known.
    """
    if trained.result is None:
        raise UsageError(
            f"{trained.training} says nothing of what was measured, which the card states; name the result file."
        )
    target = path_of(folder).absolute()
    check_replaceable(target, force)
    names = trained.set_classes(class_names)
    text = text_features(trained.method)
    with staged(target) as draft:
        if text is not None:
            held = save({"text_features": text}, metadata={"classes": json.dumps(list(names))})
            (draft / TEXT).write_bytes(held)
        if trained.training is not None:
            shutil.copyfile(trained.training, draft / PROMPTS)
        write_json(draft / RESULT, to_plain(trained.result))
        write_json(draft / CLASSES, names.record())
        about = card(trained, trained.result, names, text, plain=scores_as_clip(trained.method, text))
        (draft / CARD).write_text(about, encoding="utf-8")
    return target


@torch.no_grad()
def text_features(method: Method) -> Tensor | None:
    """Normalised text features of the current classes, (K, D) or with leading axes, float32, on the CPU.

    None for a method that makes its text image by image.
    """
    if not method.has_text_features:
        return None
    return F.normalize(method.text_features().float(), dim=-1).cpu().contiguous()


@torch.no_grad()
def scores_as_clip(method: Method, text: Tensor | None) -> bool:
    """Whether scaled cosines of plain CLIP's image features with the text features (K, D) are the method's logits.

    A method with an image tower of its own says so; for the others it is tried on an image of noise.
    """
    if text is None or text.dim() != 2 or not method.frozen_image_tower:
        return False
    backbone = method.backbone
    noise = torch.randn(1, 3, backbone.resolution, backbone.resolution, generator=torch.Generator().manual_seed(0))
    pixels = noise.to(backbone.device)
    image = F.normalize(backbone.encode_image(pixels).cls, dim=-1)
    plain = backbone.logit_scale * image @ text.to(backbone.device).T
    return torch.allclose(method(pixels).logits, plain, rtol=0, atol=TOLERANCE)


def local_paths(value: object) -> list[str]:
    """The absolute paths in a spec, or in a part of it: what of an export names folders of this machine."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        return list(chain.from_iterable(map(local_paths, value)))
    parts = value.split(":") if isinstance(value, str) else []  # a backbone is ARCHITECTURE:FILE
    return [part for part in parts if Path(part).is_absolute()]


def check_replaceable(folder: Path, force: bool) -> None:
    """Raises UsageError unless the folder is new or empty or, with `force`, holds an export and nothing else."""
    try:
        there = set(os.listdir(folder))
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"{folder} is no folder that can be written ({error.strerror}); name another one.") from error
    if there and not force:
        raise UsageError(f"{folder} is not empty; name another folder, or replace an earlier export with --force.")
    if others := sorted(there - set(FILES)):
        raise UsageError(f"{folder} holds what no export has written ({others[0]}); name another folder.")


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Within it, the path of a draft beside the folder, which takes the folder's place once all is written.

    Raises:
        UsageError: The place cannot be written.
    """
    mark = secrets.token_hex(4)
    draft, old = (folder.with_name(f".{folder.name}.{mark}.{kind}") for kind in ("tmp", "old"))
    try:
        draft.mkdir(parents=True)
        yield draft
        with suppress(FileNotFoundError):
            os.replace(folder, old)
        os.replace(draft, folder)
    except OSError as error:
        raise UsageError(f"{folder} cannot be written ({error.strerror or error}); name another folder.") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, value: object) -> None:
    """A value as JSON, in the layout of result files."""
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


# The card -------------------------------------------------------------------------------------------------------------


def card(trained: Trained, result: Result, names: ClassNames, text: Tensor | None, *, plain: bool) -> str:
    """The card of an exported checkpoint, `README.md`: what was trained, its figures, how to use it.

    Args:
        trained: What is exported.
        result: Of the run.
        names: The classes of the export.
        text: Text features, (K, D) or with leading axes; None where the method makes them image by image.
        plain: Whether plain open_clip gives the method's logits with them.
    """
    spec, facts = result.spec, registry.facts("methods", result.spec.method)
    title = result.conditions.get("title") or facts.summary.partition(":")[0]
    parts = [
        f"---\nlibrary_name: promptbench\ntags: [clip, prompt-learning, {spec.method}]\n---",
        f"# {title} for CLIP, trained on {spec.dataset}" if trained.training else f"# {title}, {spec.dataset}",
        f"{facts.summary} Made with promptbench (`promptbench-clip`).",
        *marks(result),
        table(facts_of(trained, result, facts)),
        f"## Classes\n\n{classes_line(names, trained)}",
        f"## Figures\n\nUnder the protocol `{spec.protocol}` of the suite `{spec.suite}`, in percent, one run.\n\n"
        + figures(result),
        "## With plain open_clip\n\n" + with_open_clip(trained, text, plain=plain),
        "## With promptbench\n\n" + with_promptbench(spec),
        "## Terms\n\n" + terms(spec),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def marks(result: Result) -> list[str]:
    """The footnotes that tables give such a run, on its method and on its recipe; "" for one that it has none of."""
    of_method = RECONSTRUCTED if result.conditions.get("reconstructed") else ""
    return [of_method, MARKS.get(result.spec.recipe.get("origin", ""), "")]


def facts_of(trained: Trained, result: Result, facts: registry.PluginFacts) -> list[tuple[str, str]]:
    """The rows of the card's first table: what was trained on what, how, and where the numbers were made."""
    spec, conditions = result.spec, result.conditions
    recipe = {name: value for name, value in spec.recipe.items() if name not in _NOT_IN_RECIPE}
    code = re.search(r"Code by the authors: (.+?)(?:\n\n|\nDiffers|$)", facts.docstring, flags=re.DOTALL)
    rows = [
        ("method", f"`{spec.label}`"),
        ("paper", registry.paper_of(facts)),
        ("code of its authors", " ".join(code[1].split()) if code else ""),
        ("backbone", f"`{public(spec.backbone)}`, SHA-256 of the weights {spec.weights_hash or 'unknown'}"),
        ("images", images_of(trained, result)),
        ("recipe", f"{overrides(recipe)} (origin: {spec.recipe['origin']})" if recipe else "nothing to train"),
        ("settings", overrides(spec.config) or "none"),
        ("seeds", f"{spec.data_seed} for the images, {spec.train_seed} for the training"),
        ("learned numbers", f"{result.cost.get('learned_parameters') or 0:,}"),
        ("precision, device", f"{spec.precision}, {spec.device}"),
        ("test transform", str(conditions.get("transform", {}).get("evaluation", ""))),
        ("versions", ", ".join(f"{name} {version}" for name, version in result.versions.items() if version)),
        ("commit of promptbench", result.commit),
        ("made, exported with", f"{result.created}, promptbench {__version__}"),
    ]
    return [(name, value) for name, value in rows if value]


def images_of(trained: Trained, result: Result) -> str:
    """The training images of a checkpoint in words: dataset, classes, shots and sampler."""
    spec = result.spec
    if trained.training is None:
        return f"none; measured on {spec.dataset}"
    shots = "all images" if spec.shots is None else f"{spec.shots} images"
    trained_by = f", as the protocol {spec.trained_by} trains" if spec.trained_by else ""
    return (
        f"{spec.dataset}, {len(trained.trained_on)} classes, {shots} of each drawn by `{spec.sampler}`"
        f" ({result.conditions.get('sample_size', '?')} in all){trained_by}"
    )


def classes_line(names: Sequence[str], trained: Trained) -> str:
    """How many classes there are, the first of them, and whether the training had them."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    others = trained.training is not None and tuple(names) != tuple(trained.trained_on)
    said = " They are others than those of the training, and the figures below say nothing of them." if others else ""
    return f"{len(names)}, in the order of `classes.json`: {', '.join(names[:_SHOWN])}{more}.{said}"


def figures(result: Result) -> str:
    """The metrics of a run as a table of Markdown, and why others are missing."""
    rows = [(name, f"{value:.2f}") for name, value in sorted(result.metrics.items())]
    rows += [(name.rstrip("/"), f"none: {reason}") for name, reason in sorted(result.notes.items())]
    return table(rows, head=("metric", "value"))


def with_open_clip(trained: Trained, text: Tensor | None, *, plain: bool) -> str:
    """How to score images without promptbench, or why that does not work."""
    if text is None:
        return "Plain open_clip cannot run it: its text depends on the image, so there are no text features to export."
    shape = " x ".join(map(str, text.shape))
    held = f"`{TEXT}` holds the normalised text features ({shape}, float32) of these classes"
    if plain:
        return f"{held}; with CLIP's own image features they give the method's logits.\n\n{snippet(trained)}"
    if not trained.method.frozen_image_tower:
        return (
            f"Plain open_clip cannot run it: what it learned changes the image tower too (visual prompts). {held}, "
            "which belong to image features of that tower."
        )
    return f"Plain open_clip cannot run it: it does not score images by CLIP's global feature alone. {held}."


def snippet(trained: Trained) -> str:
    """Python that classifies an image with open_clip and the text features."""
    backbone = trained.method.backbone
    lines = [
        "import json, open_clip, torch",
        "from PIL import Image",
        "from safetensors.torch import load_file",
        "",
        *model_lines(backbone),
        f"transform = open_clip.image_transform({backbone.resolution}, is_train=False, mean={backbone.mean}, "
        f"std={backbone.std})",
        'names = json.load(open("classes.json"))["names"]',
        f'text = load_file("{TEXT}")["text_features"]  # (K, D)',
        'image = transform(Image.open("image.jpg").convert("RGB")).unsqueeze(0)',
        "with torch.no_grad():",
        "    logits = model.logit_scale.exp() * model.encode_image(image, normalize=True) @ text.T  # (1, K)",
        "print(names[logits.argmax()])",
    ]
    return fenced(lines)


def model_lines(backbone: Backbone) -> list[str]:
    """Python that makes `model`, the open_clip model that a backbone is."""
    if backbone.name == EMBEDDED or backbone.name.endswith(f":{RANDOM}"):
        own = f'model = promptbench.load_backbone("{backbone.name}").clip'
        return ["import promptbench  # for the weights, which are nowhere else", own]
    if ":" not in backbone.name:
        return [f"model = ...  # {backbone.name}: the model of open_clip that was given to promptbench"]
    architecture, weights = split_name(backbone.name)
    config = Path(architecture).name if architecture.endswith(".json") else ""
    known = [f'open_clip.add_model_config("{config}")'] if config else []
    quick = any(type(module).__name__ == "QuickGELU" for module in backbone.modules())
    activation = ", force_quick_gelu=True" if quick else ""
    name = config.removesuffix(".json") or architecture
    return [*known, f'model = open_clip.create_model("{name}", pretrained="{Path(weights).name}"{activation}).eval()']


def with_promptbench(spec: Spec) -> str:
    """How to use the folder with promptbench."""
    lines = [
        "import promptbench",
        "",
        'trained = promptbench.load(".")  # this folder, or hf://user/name',
        'trained.classify(["image.jpg"])  # per image, classes and probabilities, the likeliest first',
    ]
    plugin = (
        f" The method is a plugin (SHA-256 of its file {spec.plugin[:12]}...), which promptbench must be given."
        if spec.plugin
        else ""
    )
    return f"`{PROMPTS}` holds what was learned, where anything was; nothing in this folder is code.{plugin}\n\n" + (
        fenced(lines)
    )


def terms(spec: Spec) -> str:
    """What is known of the terms of the training images."""
    known = spec.dataset in registry.names("datasets")
    info = registry.facts("datasets", spec.dataset).attributes.get("info", {}) if known else {}
    said = info.get("license", "") if isinstance(info, dict) else ""
    images = (
        f"The images of {spec.dataset}: {said}." if said else f"No terms of the images of {spec.dataset} are known."
    )
    return f"{images} The weights of CLIP have terms of their own. Whoever publishes this chooses its licence."


def public(backbone: str) -> str:
    """A backbone's name without the folders of files."""
    return ":".join(Path(part).name for part in backbone.split(":")) if ":" in backbone else backbone


def table(rows: Iterable[tuple[str, str]], head: tuple[str, str] = ("", "")) -> str:
    """A table of Markdown with two columns."""
    lines = [head, ("---", "---"), *rows]
    return "\n".join(f"| {name} | {' '.join(value.split()).replace('|', chr(92) + '|')} |" for name, value in lines)


def fenced(lines: Sequence[str]) -> str:
    """Lines of Python as Markdown."""
    return "\n".join(["```python", *lines, "```"])
