"""Backbones by name: the embedded tiny CLIP, open_clip's models with public weights, or files of your own."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from promptbench.config import UsageError, nearest, path_of, text_of
from promptbench.storage import unpickle

EMBEDDED = "mini"
RANDOM = "random"
NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")  # further tensors of OpenAI's files
PLAIN = "-gelu"  # behind an architecture: the file's weights were trained with plain GELU
HOW_TO_NAME = "write ARCHITECTURE:TAG, such as 'ViT-B-16:openai', or ARCHITECTURE:FILE"

BACKBONES = {
    "mini": "embedded tiny CLIP, 48 px, ships with the package",
    "ViT-B-16-quickgelu:openai": "OpenAI CLIP ViT-B/16, 224 px, the papers' default",
    "ViT-B-32-quickgelu:openai": "OpenAI CLIP ViT-B/32, 224 px",
    "ViT-L-14-quickgelu:openai": "OpenAI CLIP ViT-L/14, 224 px",
    "RN50-quickgelu:openai": "OpenAI CLIP ResNet-50, 224 px (no visual prompts)",
    "RN101-quickgelu:openai": "OpenAI CLIP ResNet-101, 224 px (no visual prompts)",
}


@dataclass(frozen=True)
class BackboneShape:
    """What planning needs of a backbone, known without loading it: its name and the depths of its towers.

    Attributes:
        name: As it is typed.
        text_depth: As in `Backbone`, like the others.
        vision_depth: 0 where no visual prompts can enter.
        vision_layers: Those blocks that a method may run itself.
        config: Of the architecture.
    """

    name: str
    text_depth: int
    vision_depth: int
    vision_layers: int
    config: Mapping[str, Any] = field(repr=False, compare=False)

    @property
    def lacks(self) -> dict[str, str]:
        """For each depth of the image tower that is 0, what tower that is."""
        from promptbench.clip import capabilities

        return capabilities.lacks(self.config)


def load_backbone(name: str = EMBEDDED) -> Any:
    """A frozen `Backbone`, on the CPU, in float32.

    Args:
        name: `mini`; or `ARCHITECTURE:WEIGHTS`. The architecture is one of open_clip's, or the path of a JSON config of
            that kind. The weights are a pretrained tag (`ViT-B-16:openai`), the path of a file, or `random`, from
            a fixed seed, for tests and timing. Weights that were trained with QuickGELU get QuickGELU: open_clip itself
            would only warn, and every number would be silently lower.

    Raises:
        UsageError: On an unknown name, or weights that are neither here nor can be fetched.
    """
    from promptbench.clip.backbone import Backbone

    if name == EMBEDDED:
        from promptbench.mini.model import load

        try:
            clip, tokenizer, known = load()
        except (OSError, ValueError) as error:
            raise UsageError(f"The embedded weights cannot be loaded: {error}") from error
        return Backbone(clip, tokenizer, name=name, known_tokens=known)
    architecture, weights = split_name(name)
    config = config_of(name)
    if wrong := foreign(config):
        raise UsageError(f"Backbone '{name}' has {wrong}; choose one with open_clip's own, such as ViT-B-16.")
    import open_clip

    if architecture.endswith(".json"):
        open_clip.add_model_config(architecture)
        architecture = Path(architecture).stem
    plain = name.partition(":")[0].endswith(PLAIN)
    clip = _create(architecture, weights, plain)
    return Backbone(clip, _tokenizer(architecture, config), name=name)


def files_of(backbone: str) -> list[Path]:
    """The files behind the name of a backbone, its architecture's where that is one of the user's."""
    if backbone == EMBEDDED:
        folder = Path(str(files("promptbench.mini")))
        return sorted([*folder.glob("*.safetensors"), *folder.glob("mini-clip*.json")])
    architecture, weights = (path_of(part) for part in split_name(backbone))
    own = [architecture] if architecture.suffix == ".json" else []
    named = weights.is_file() or (own and weights.name != RANDOM)  # a tag goes with an architecture of open_clip alone
    return [*own, weights] if named else own


def state_of(path: Path) -> tuple[str, int, int]:
    """Path, size and time of change of a file."""
    status = path.stat()
    return str(path.absolute()), status.st_size, status.st_mtime_ns


@cache
def shape_of(name: str) -> BackboneShape:
    """The depths of a backbone's towers, read from its architecture file.

    Nothing heavy is imported, but for image towers of timm, which alone knows their depths.

    Raises:
        UsageError: On an unknown architecture, or a name without weights.
    """
    config = config_of(name)
    text, vision = config["text_cfg"].get("layers", 12), config["vision_cfg"]
    if vision.get("timm_model_name"):
        from promptbench.clip.capabilities import timm_depth

        return BackboneShape(name, text, timm_depth(vision["timm_model_name"]), 0, config)
    layers = vision.get("layers", 12)
    depth = layers if isinstance(layers, int) else 0  # a ResNet has a list of stages
    pools = (
        vision.get("attentional_pool") or vision.get("final_ln_after_pool") or vision.get("pool_type", "tok") != "tok"
    )
    return BackboneShape(name, text, depth, 0 if pools else depth, config)


def foreign(config: Mapping[str, Any]) -> str:
    """What text tower an architecture has if it is not one of open_clip's own; empty if it is."""
    name = config["text_cfg"].get("hf_model_name")
    return f"a text tower of Hugging Face ({name}), which prompts cannot enter" if name else ""


def said_of_embedded() -> str:
    """What the embedded backbone is for, and the line for real pictures: where weights come from, with and without a
    network."""
    exact = "ViT-B-16-quickgelu"
    R = config_of(EMBEDDED)["vision_cfg"]["image_size"]
    return (
        f"backbone '{EMBEDDED}' knows rendered shapes of {R} x {R} pixels only, and larger images are scaled down; for "
        f"real pictures take --backbone {exact}:openai, whose weights open_clip fetches once (0.6 GB, "
        f"{_source_of(exact, 'openai')}), or without a network a file of them: --backbone {exact}:/path/to/file"
    )


def lacking(config: Mapping[str, Any]) -> dict[str, str]:
    """By need, what lacks it of an architecture; empty where nothing does."""
    from promptbench.clip import capabilities

    wrong = foreign(config)
    return dict.fromkeys(capabilities.NEEDS, wrong) if wrong else capabilities.of_config(config)


def configs() -> dict[str, dict[str, Any]]:
    """The configs of all of open_clip's architectures, by their names."""
    files = sorted(architectures().glob("*.json"), key=lambda file: file.stem.lower())
    return {file.stem: json.loads(text_of(file)) for file in files}


def config_of(name: str) -> dict[str, Any]:
    """The config of a backbone's architecture.

    Raises:
        UsageError: On an unknown architecture, a name without weights, or another file.
    """
    file = _folder("promptbench.mini") / "mini-clip.json" if name == EMBEDDED else config_file(split_name(name)[0])
    try:
        config = json.loads(text_of(file))
        if isinstance(config["text_cfg"], dict) and isinstance(config["vision_cfg"], dict):
            return config
    except (ValueError, KeyError, TypeError) as error:
        raise _no_architecture(file) from error
    raise _no_architecture(file)


def _no_architecture(file: Path) -> UsageError:
    return UsageError(f"{file} is no architecture of open_clip: it needs 'text_cfg' and 'vision_cfg'.")


def split_name(name: str) -> tuple[str, str]:
    """Architecture, without the `-gelu` that says so of a file's activation, and weights."""
    architecture, _, weights = name.partition(":")
    architecture = architecture.removesuffix(PLAIN)
    if not weights:
        raise UsageError(f"Backbone '{name}' names no weights; {HOW_TO_NAME}.{nearest(name, BACKBONES)}")
    return architecture, weights


def config_file(architecture: str) -> Path:
    """The JSON config of an architecture: open_clip's, or a file of the user's."""
    own = architecture.endswith(".json")
    file = path_of(architecture if own else architectures() / f"{architecture}.json")
    if not file.is_file():
        known = [] if own else [path.stem for path in file.parent.glob("*.json")]
        raise UsageError(f"open_clip knows no architecture '{architecture}'.{nearest(architecture, known)}")
    return file


def architectures() -> Path:
    """The folder of open_clip's JSON configs."""
    return _folder("open_clip") / "model_configs"


def _folder(package: str) -> Path:
    """A package's folder, found without importing it."""
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations  # a dependency
    return Path(spec.submodule_search_locations[0])


def _create(architecture: str, weights: str, plain: bool = False) -> Any:
    """An open_clip model, with the activation that its weights were trained with."""
    import open_clip
    import torch

    if weights == RANDOM:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            with silence():  # open_clip warns that there are no weights
                return open_clip.create_model(architecture, pretrained=None, load_weights=False)
    file = path_of(weights)
    tags = open_clip.list_pretrained_tags_by_model(architecture.removesuffix("-quickgelu"))
    if not file.is_file() and weights not in tags:
        known = f" Tags: {', '.join(tags)}." if tags else ""
        raise UsageError(
            f"'{weights}' is neither a weight file nor a pretrained tag of {architecture}."
            f"{nearest(weights, tags) or known}"
        )
    quick = _needs_quick_gelu(architecture, weights)
    if file.is_file() and not quick and not plain and f"{architecture}-quickgelu" in open_clip.list_models():
        raise UsageError(
            f"A file does not say which activation its weights were trained with: name {architecture}-quickgelu:{file} "
            f"for OpenAI's weights, or {architecture}{PLAIN}:{file} for weights trained with plain GELU."
        )
    try:
        with silence(), warnings.catch_warnings(), _without_pickle(file) as readable:
            warnings.filterwarnings("error", message="QuickGELU mismatch")
            return open_clip.create_model(
                architecture,
                pretrained=str(readable) if file.is_file() else weights,
                force_quick_gelu=quick and not plain,
            )
    except UsageError:
        raise
    except UserWarning:
        raise UsageError(
            f"The weights '{weights}' need QuickGELU; name the backbone {architecture}-quickgelu:{weights}."
        ) from None
    except Exception as error:  # open_clip, torch and the hub raise anything
        reason = str(error).partition("\n")[0].partition(". ")[0].rstrip(".")
        if file.is_file():
            raise UsageError(f"The weight file {file} cannot be loaded into {architecture}: {reason}.") from error
        exact = f"{architecture.removesuffix('-quickgelu')}-quickgelu" if quick else architecture
        raise UsageError(
            f"The weights '{weights}' of {architecture} could not be fetched ({type(error).__name__}); without a "
            f"network, download {_source_of(architecture, weights)} elsewhere and name the file: "
            f"--backbone {exact}:/path/to/file."
        ) from error


def _tokenizer(architecture: str, config: Mapping[str, Any]) -> Any:
    """An architecture's tokenizer; open_clip's own needs nothing, others a package and files."""
    import open_clip

    try:
        with silence():
            return open_clip.get_tokenizer(architecture)
    except Exception as error:  # the hub raises anything
        name = config["text_cfg"].get("hf_tokenizer_name", architecture)
        missing = isinstance(error, ImportError)
        way_out = "pip install transformers" if missing else f"fetch it once where there is a network ({name})"
        raise UsageError(
            f"{architecture} reads texts with a tokenizer of Hugging Face, which cannot be loaded "
            f"({type(error).__name__}); {way_out}."
        ) from error


@contextmanager
def _without_pickle(file: Path) -> Iterator[Path]:
    """A weight file that open_clip may open: the tensors of a pickle, also of OpenAI's own files, which are modules of
    TorchScript, lie in a temporary safetensors file.

    torch's own reader, the restricted one too, takes as much time and memory over a small file as its author likes.
    """
    if file.suffix == ".safetensors" or not file.is_file():
        yield file
        return
    content = unpickle.checkpoint(file, bare=True)
    found = content.get("state_dict") if isinstance(content, dict) else None
    state = found if isinstance(found, dict) else {}
    state = {name: tensor for name, tensor in state.items() if name.rpartition(".")[2] not in NO_WEIGHTS}
    if not state:
        raise UsageError(f"The weight file {file} holds no tensors.")
    if sum(tensor.nbytes for tensor in state.values()) > 2 * file.stat().st_size:  # tensors may share their numbers
        raise UsageError(f"The tensors of the weight file {file} are far larger than it is.")
    from safetensors.torch import save_file

    with TemporaryDirectory(prefix="promptbench-") as folder:
        readable = Path(folder) / "weights.safetensors"
        save_file({name: tensor.clone().contiguous() for name, tensor in state.items()}, readable)
        del content, found, state
        yield readable


@contextmanager
def silence() -> Iterator[None]:
    """A context in which nobody logs: what open_clip and the hub have to say comes back as an exception."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _source_of(architecture: str, tag: str) -> str:
    """Where open_clip fetches weights from."""
    import open_clip

    record = open_clip.get_pretrained_cfg(architecture, tag) or {}
    hub = str(record.get("hf_hub") or "").rstrip("/")
    return f"https://huggingface.co/{hub}" if hub else str(record.get("url") or "them")


def _needs_quick_gelu(architecture: str, weights: str) -> bool:
    """Whether these weights were trained with QuickGELU, as far as open_clip's records tell."""
    import open_clip

    if architecture.endswith("-quickgelu"):
        return True
    record = open_clip.get_pretrained_cfg(architecture, weights) or {}
    return bool(record.get("quick_gelu", False)) or "openai" in Path(weights).stem.lower()
