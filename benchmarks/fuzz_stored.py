"""The kinds of input that promptbench has written itself: features, notes of trainings, claims, trainings, exports."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from promptbench.benchmarks.fuzz_changes import PATHS, Act, Draw, as_json, changed, damaged
from promptbench.benchmarks.fuzz_site import Site
from safetensors.torch import load, save


def cached_features(draw: Draw, site: Site, work: Path) -> Act:
    """Entries of the cache of features: whatever is in them, the run's figures stay what they are."""
    entries = sorted(site.copy("cache", work).glob("features/*.safetensors"))
    for path in entries:
        data = path.read_bytes()
        how = draw(st.integers(0, 3))
        if how == 0:
            path.write_bytes(damaged(draw, data))
            continue
        path.write_bytes(with_checksum(spoilt_tensors(draw, data)))
    return site.words("zeroshot", work / "out")


def spoilt_tensors(draw: Draw, data: bytes) -> bytes:
    """A safetensors file with other shapes, types, names or metadata, whole in itself."""
    tensors = load(data)
    about = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
    name = draw(st.sampled_from(sorted(tensors)))
    how = draw(st.integers(0, 5))
    if how == 0:
        tensors[name] = tensors[name].flatten()
    elif how == 1:
        tensors[name] = tensors[name].double() if tensors[name].is_floating_point() else tensors[name].int()
    elif how == 2:
        tensors[draw(st.sampled_from((*PATHS, "x", "")))] = tensors.pop(name)
    elif how == 3:
        tensors[name] = tensors[name][:0].clone()
    elif how == 4:
        tensors[name] = torch.zeros(*tensors[name].shape, 2)
    else:
        key = draw(st.sampled_from(sorted(about) or ["format"]))
        try:
            said: Any = json.loads(about.get(key, ""))
            about[key] = json.dumps(changed(draw, said))
        except ValueError:
            about[key] = draw(st.sampled_from((*PATHS, "", "promptbench/99", "{", "x" * 999)))
    return save(tensors, metadata=about)


def with_checksum(data: bytes) -> bytes:
    """With a last tensor, where it is whole, of what stands before it, as features and notes of trainings have it."""
    return data[:-32] + hashlib.sha256(data[:-32]).digest()


def partial_files(draw: Draw, site: Site, work: Path) -> Act:
    """Notes of where a training stands."""
    (source,) = (site.folder / "runs" / "trainings").glob("*.partial")
    (work / "out" / "trainings").mkdir(parents=True)
    data = source.read_bytes()
    forged = draw(st.booleans())  # with a checksum of its own: the figures may become others
    spoilt = with_checksum(spoilt_tensors(draw, data)) if forged else damaged(draw, data)
    if forged:
        (work / "forged").touch()
    (work / "out" / "trainings" / source.name).write_bytes(spoilt)
    return site.words("coop", work / "out")


def claim_files(draw: Draw, site: Site, work: Path) -> Act:
    """Claims of processes that are not there, or say something odd."""
    out = site.copy("runs", work)
    result = json.loads(site.results(out, "coop")[0].read_text())
    owner = {"host": "elsewhere", "machine": "m", "pid": 1, "born": "1", "since": 1.0, "token": "t"}
    abouts = (
        {"kind": "run", "run": "base2new/birds/coop-1", "seeds": [1, 1], "epochs": 2},
        {"kind": "call", "runs": ["a"]},
    )
    claim = {**owner, "about": draw(st.sampled_from(abouts))}
    body = as_json(draw, claim) + draw(
        st.sampled_from((b"", b"\n", b'\n{"done": "x", "total": 0}', b"\n" + b"{" * 2000))
    )
    (out / "claims").mkdir()
    names = (result["conditions"]["training_key"][:32], "call-1", "x")
    path = out / "claims" / f"{draw(st.sampled_from(names))}.claim"
    path.write_bytes(body)
    if draw(st.booleans()):
        return ("status", "--output", str(out))
    os.utime(path, (time.time() - 999,) * 2)
    for stored in (*out.glob("results/*/*/coop*"), *out.glob("trainings/*")):
        stored.unlink()
    out.rename(work / "out")
    return site.words("coop", work / "out")


def trainings(draw: Draw, site: Site, work: Path) -> Act:
    """Stored trainings: used again, loaded alone, or found to be damaged and made again."""
    out = site.copy("runs", work).rename(work / "out")
    (path,) = (out / "trainings").glob("*.safetensors")
    data = path.read_bytes()
    path.write_bytes(damaged(draw, data) if draw(st.integers(0, 2)) == 0 else spoilt_tensors(draw, data))
    if draw(st.integers(0, 2)):
        return ("predict", "--run", str(path), str(site.folder / "birds" / "owl" / "0.png"))
    for result in site.results(out, "coop"):
        result.unlink()
    return site.words("coop", out)


def exports(draw: Draw, site: Site, work: Path) -> Act:
    """Exported folders, as somebody else may have made them."""
    folder = site.copy("export", work)
    path = folder / draw(st.sampled_from(("classes.json", "result.json", "prompts.safetensors")))
    data = path.read_bytes()
    if path.suffix == ".json":
        path.write_bytes(as_json(draw, json.loads(data)))
    else:
        path.write_bytes(damaged(draw, data) if draw(st.booleans()) else spoilt_tensors(draw, data))
    image = str(site.folder / "birds" / "owl" / "0.png")
    if draw(st.integers(0, 3)) == 0:
        return ("export", "--run", str(folder), "-o", str(work / "out" / "export"))
    return ("predict", "--run", str(folder), image)
