"""Files of a repository on a hub of our own."""

from __future__ import annotations

from pathlib import Path

from gguf_files import TINY, contents, store
from hub_server import Hub

from bitgen.checkpoints.synth import SynthCheckpoint
from bitgen.gguf import types
from bitgen.gguf.writer import write_gguf
from bitgen.spec import ModelShape


def write(hub: Hub, name: str, type: str = "i2_s", shape: ModelShape = TINY, seed: int = 1) -> Path:
    path = hub.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_gguf(path, SynthCheckpoint(shape, seed), type)
    return path


def q4(hub: Hub, name: str) -> Path:
    """A file whose matrices are of type Q4_0."""
    metadata, tensors = contents()
    for key, (shape, _, _) in list(tensors.items()):
        if len(shape) == 2:
            tensors[key] = (shape, 2, bytes(shape[0] * shape[1] // 32 * 18))
    return store(hub.folder / name, metadata, tensors)


def rounded(hub: Hub, name: str, type: str = "tq2_0") -> Path:
    """A file whose embedding is Q8_0, as llama.cpp's quantiser leaves none in floats."""
    metadata, tensors = contents(type=type)
    shape, _, _ = tensors["token_embd.weight"]
    tensors["token_embd.weight"] = (shape, types.Q8_0, bytes(shape[0] * shape[1] // 32 * 34))
    return store(hub.folder / name, metadata, tensors)


def split(path: Path, parts: int) -> None:
    """A model's file as several."""
    metadata, tensors = contents()
    names = list(tensors)
    for i in range(parts):
        own = {name: tensors[name] for name in names[i::parts]}
        said = {"split.no": i, "split.count": parts, "split.tensors.count": len(tensors)}
        store(
            path.with_name(f"{path.stem}-{i + 1:05}-of-{parts:05}.gguf"), {**(metadata if i == 0 else {}), **said}, own
        )
