"""Sources of a conversion: a folder, a file, a model on the Hugging Face Hub, or a preset that is there."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import bitgen
from bitgen import data
from bitgen.convert import hub, hub_cache
from bitgen.convert.hf import HfCheckpoint
from bitgen.convert.names import HubName, meaning
from bitgen.convert.wanted import cached, fetch, wanted
from bitgen.errors import BitgenError
from bitgen.gguf.reader import GgufCheckpoint, read_gguf
from bitgen.gguf.writer import write_gguf
from bitgen.spec import Progress
from bitgen.text.tokenizer import Tokenizer

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

    source: a folder, a GGUF file, or a name as of names.meaning. Of a repository on the Hub that has both, the
    checkpoint is taken, unless the name picks a file. reading: options of read_gguf, for a GGUF file.
    """
    meant = meaning(source)
    if isinstance(meant, HubName):
        return _of_hub(meant, reading)
    return HfCheckpoint(meant) if meant.is_dir() else read_gguf(meant, **reading)


def _of_hub(name: HubName, reading: dict[str, Any]) -> Source:
    """A model on the Hub, or without a network what the cache has of it."""
    try:
        what = wanted(name, checkpoint_first=True)
    except hub.UnreachableError:
        found, folder = cached(name), hub_cache.snapshot(name)
        if found and folder:
            return read_gguf(folder / found.candidate.name, **reading)
        if name.pick or folder is None:
            raise
        return HfCheckpoint(hub.download(name, None), name=name.short)
    if what.candidate is None:
        return HfCheckpoint(hub.download(name, what.listing), name=name.short)
    return read_gguf(fetch(what), **reading)
