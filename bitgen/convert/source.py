"""Sources of a conversion: a folder, a file, a model on the Hugging Face Hub, or a preset that is there."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import bitgen
from bitgen import data
from bitgen.checkpoints import presets
from bitgen.convert import hub
from bitgen.convert.hf import HfCheckpoint
from bitgen.errors import BitgenError, UnsupportedError
from bitgen.gguf.reader import GgufCheckpoint, read_gguf
from bitgen.gguf.writer import write_gguf
from bitgen.spec import Progress
from bitgen.text.tokenizer import Tokenizer

HUB = "hf:"
Source = HfCheckpoint | GgufCheckpoint


def convert(
    source: str | Path | Source,
    out: str | Path,
    type: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Write a source as a GGUF file with matrices of `type`, one of them in memory at a time.

    source: a checkpoint, or what `open_source` takes. What bitgen itself would not open is not written: its sentence is
    the BitgenError. An interrupted conversion leaves a part file, and the same call
    goes on from there if the source's files and bitgen's version are the same.
    """
    checkpoint = open_source(str(source)) if isinstance(source, str | Path) else source
    data.target(Path(out), _inputs(checkpoint))
    reading = "" if isinstance(checkpoint, HfCheckpoint) else f" {checkpoint.reading} {checkpoint.shape}"
    seen = [f"{file.resolve()} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in checkpoint.files]
    identity = f"{bitgen.__version__} {seen}{reading}"
    write_gguf(out, checkpoint, type, progress, identity, check=lambda *parts: check_head(Path(out), *parts))


def check_head(out: Path, head: bytes, tensor_bytes: int) -> None:
    """BitgenError unless a file with this head is opened, and its tokenizer with it. Its tensors are a hole here."""
    with data.scratch() as folder:
        path = folder / "head.gguf"
        try:
            with path.open("wb") as file:
                file.write(head)
                file.truncate(len(head) + tensor_bytes)
            keys = read_gguf(path).metadata
            if "tokenizer.ggml.model" in keys:
                Tokenizer.from_metadata(keys)
        except OSError as error:
            raise BitgenError(f"{out} is not written: {folder} has no room for its head: {error.strerror}") from None
        except BitgenError as error:
            raise type(error)(f"{out} is not written: {str(error).removeprefix(f'{path}: ')}") from None


def _inputs(checkpoint: Source) -> Iterable[Path]:
    """The files of a source, which a conversion to one of their names would destroy."""
    if isinstance(checkpoint, GgufCheckpoint):
        return checkpoint.files
    return (file for file in checkpoint.directory.iterdir() if file.suffix != ".gguf")


def open_source(source: str, **reading: Any) -> Source:
    """The checkpoint that a source names, downloaded if need be.

    source: a folder, a GGUF file, "hf:owner/name" with or without "@revision", or a preset's name; a path that exists
    comes first. reading: options of read_gguf, for a GGUF file.
    """
    path = Path(source)
    if path.is_dir():
        return HfCheckpoint(path)
    if path.exists() or path.suffix == ".gguf":
        return read_gguf(path, **reading)
    id = source.removeprefix(HUB) if source.startswith(HUB) else _id_of_preset(source)
    return HfCheckpoint(hub.download(id), name=id.partition("@")[0].rpartition("/")[2])


def _id_of_preset(source: str) -> str:
    try:
        id = presets.hub_id(source)
    except UnsupportedError as error:
        hint = f"; on the Hugging Face Hub: {HUB}{source}" if source.count("/") == 1 else ""
        raise BitgenError(f"{source}: no such folder or file, and {error}{hint}") from None
    if id is None:
        raise BitgenError(f"{source}: no such folder, and the preset of that name is not on the Hugging Face Hub")
    return id
