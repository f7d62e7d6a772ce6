"""The verbs on model files and on the models of this machine; `bitgen.api` has them all."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from bitgen import data
from bitgen import prune as _prune
from bitgen.checkpoints import presets
from bitgen.checkpoints.synth import SynthCheckpoint
from bitgen.compile import library
from bitgen.convert import local as _local
from bitgen.convert import shelf as _shelf
from bitgen.convert import source as _source
from bitgen.convert.hub import DOWNLOADING as DOWNLOADING
from bitgen.convert.hub import hide_bars as hide_bars
from bitgen.convert.names import HubName
from bitgen.convert.names import meaning as _meaning
from bitgen.convert.wanted import Wanted
from bitgen.data import shipped_path
from bitgen.engine import arguments
from bitgen.engine.model import Model
from bitgen.engine.sampling import from_metadata as sampling_of
from bitgen.errors import BitgenError, UnsupportedError
from bitgen.gguf import doubts, split
from bitgen.gguf import info as _info
from bitgen.gguf.container import Container
from bitgen.gguf.reader import GgufCheckpoint, read_gguf
from bitgen.gguf.writer import TernaryType, write_gguf
from bitgen.kernels import plan
from bitgen.progress import Watch, watched
from bitgen.prune import Pruned
from bitgen.spec import ModelShape
from bitgen.text.tokenizer import Tokenizer


def shape_of(model: str | Path) -> ModelShape:
    """The shape of a model that is here, by any of its names, or of a preset, here or not."""
    arguments.path("model", model)
    with suppress(UnsupportedError):
        if not Path(model).is_file():
            return presets.load(str(model))
    return read_gguf(_local.located(model)).shape


def check_output(output: Path | None, model: Model | str | Path | None, *inputs: Path) -> None:
    """BitgenError where an output would replace what is no file, a file of the model, or another input."""
    if output:
        meant = model.path if isinstance(model, Model) else shipped_path() if model is None else _meant(model)
        data.target(output, (*(split.paths(meant) if isinstance(meant, Path) else ()), *inputs))


def _meant(model: str | Path) -> Path | HubName | None:
    """What a name stands for; None: only a preset's shape is asked for."""
    with suppress(BitgenError):
        return _meaning(model)
    return None


@watched
def synth(
    preset: str,
    output: Path,
    *,
    seed: int = 0,
    type: TernaryType | None = None,
    progress: Watch = None,
) -> None:
    """Write a model of a preset's shape with random ternary weights."""
    write_gguf(
        output,
        SynthCheckpoint(presets.load(preset), arguments.checked("seed", seed)),
        type,
        partial(progress, "writing"),
    )


open_source = _source.open_source


@watched
def convert(
    source: str | Path | _source.Source,
    output: Path,
    *,
    type: TernaryType | None = None,
    progress: Watch = None,
) -> None:
    """Convert a checkpoint to GGUF: a folder, a GGUF, "hf:owner/name", a preset's name, or what open_source gave."""
    _source.convert(source, output, type, partial(progress, "converting"))


def warning(checkpoint: _source.Source) -> str | None:
    """What a file seems to have wrong (gguf/doubts.py), or which tokens of a folder are left out; else None."""
    return doubts.warning(checkpoint) if isinstance(checkpoint, GgufCheckpoint) else checkpoint.warning


@watched
def info(file: str | Path, *, progress: Watch = None) -> dict[str, Any]:
    """What a model that is here is, by any of its names, and the kernels it would run with on this host."""
    file = _local.located(file, progress=progress)
    facts = _info.describe(file)
    if "unsupported" in facts:
        return facts
    checkpoint = read_gguf(file)
    sampling, warning = sampling_of(checkpoint.metadata)
    facts |= {"sampling": str(sampling), **({"sampling_warning": warning} if warning else {})}
    planned = plan.of_model(checkpoint.shape, library.host_isa(progress))
    runs = {role: {"layout": str(p.layout), "source": planned.sources[role]} for role, p in planned.matrices.items()}
    return {**facts, "isa": planned.isa, "kernels": runs}


def tokenizer(model: Model | str | Path | None = None) -> Tokenizer:
    """The tokenizer of a model; its file need not be one that bitgen runs."""
    if isinstance(model, Model):
        return model.tokenizer
    if model is not None:
        arguments.path("model", model)
    return Tokenizer.from_metadata(Container(_local.located(model)).metadata)


# ---- models by name -------------------------------------------------------------------------------------------

absent = _local.absent


@watched
def wanted(name: str | Path | None, *, progress: Watch = None) -> Wanted:
    """What a download would bring for a name, as the Hub has it now. BitgenError says why nothing can be had."""
    return _local.wanted_of(name, progress)


@watched
def find(name: str | Path | None, *, progress: Watch = None) -> Path | None:
    """The GGUF file of a model, where it is here; None: it is on the Hub. progress: of converting a folder."""
    return _local.find(name, progress)


@watched
def pull(what: Wanted, *, progress: Watch = None) -> Path:
    """Download what `wanted` gave, and convert it if it is a checkpoint; the GGUF file."""
    return _local.pull(what, progress)


models = _shelf.shelf
model_names = _shelf.names
chatting = _shelf.chatting
removal = _shelf.removal


def prune_cache(older_than: float | None = None, dry_run: bool = False) -> Pruned:
    """Remove from the cache what no model here needs; older_than: also what was not used for so many days."""
    return _prune.prune(older_than, dry_run, _shelf.stale())
