"""A model as a program with no dependencies: a static executable and its packed weights, or both in one file.

The weights are packed once but the program holds several ISA levels, so these are planned to share one level's
layouts. The lowest level with vector instructions decides unless told otherwise: what it reads, the levels above it
mostly read too (NEON, dotprod and i8mm do; AVX-VNNI reads what AVX2 does). A level that cannot is left out, and a CPU
that has it takes the next one down: the same text, some speed given away.

The weights' file is a packed model, the tokenizer (text/tables.py) and a trailer, `bg_trailer` of
runtime/core/model.h, that says where they are. Behind a program it is the same file with other offsets.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bitgen import data, store, targets
from bitgen.checkpoints.checkpoint import Checkpoint
from bitgen.compile import library, pack
from bitgen.compile.clang import BuildOptions
from bitgen.errors import UnsupportedError
from bitgen.headers import constants, record
from bitgen.kernels import plan, space
from bitgen.kernels.plan import ModelPlan
from bitgen.spec import GemmShape, Layout, Listener, MatrixPlan, ModelShape, Platform
from bitgen.text import tables
from bitgen.text.tokenizer import Tokenizer

MAGIC, PAGE = b"BITGENST", 4096


@dataclass(frozen=True)
class Program:
    """What was written."""

    files: tuple[Path, ...]  # the executable; its weights, unless they are within it
    levels: tuple[str, ...]  # ISA levels that it holds, best first
    left_out: tuple[str, ...]  # those of the architecture that cannot read the weights' layouts
    warning: str | None = None  # what of the model's file was passed over

    def to_json(self) -> dict[str, object]:
        """What `bitgen build --standalone --json` prints."""
        files = [{"path": str(file), "bytes": file.stat().st_size} for file in self.files]
        return {"files": files, "levels": list(self.levels), "left_out": list(self.left_out)}

    @property
    def about(self) -> str:
        """One line: how large, and for which CPUs."""
        sizes = " + ".join(f"{file.stat().st_size / 1e6:.1f} MB" for file in self.files)
        without = f"; without {', '.join(self.left_out)}, whose layouts differ" if self.left_out else ""
        return f"{sizes}; levels {', '.join(self.levels)}{without}"


def write(
    checkpoint: Checkpoint,
    name: str,
    folder: Path,
    platform: Platform,
    levels: Sequence[ModelPlan],
    left_out: Sequence[str] = (),
    *,
    sampling: Mapping[str, float],
    one_file: bool = False,
    head: pack.Head = "certified",
    progress: Listener = lambda *_: None,
    inputs: Sequence[Path] = (),
) -> Program:
    """Write the program <folder>/<name>, with the levels of `shared_layout`, and <name>.bgpk unless `one_file`.

    A name that cannot be a file's is made one.
    sampling: how tokens are chosen where nobody says, the fields of `bg_trailer` by name.
    inputs: files that must not be replaced, those that the checkpoint is read from.
    """
    pack.check_head(checkpoint.shape, head)
    program = folder / f"{store.slug(name)}{platform.system.suffix}"
    weights = program.with_name(f"{program.name}.bgpk")
    for file in (program, weights):
        data.target(file, inputs)
    tokens = tables.blob(Tokenizer.from_metadata(checkpoint.metadata))
    options = BuildOptions(platform, "run.c", listener=progress)
    artefact = library.for_model(checkpoint.shape, levels, options)

    def pack_model(path: Path) -> None:
        pack.write(path, checkpoint, levels[0], head, partial(progress, "packing the weights"))

    with data.replacing(program, parents=True) as made:
        shutil.copy(artefact.path, made)
        if one_file:
            packed = made.with_name("model.bgpk")
            pack_model(packed)
            _append(made, packed, tokens, sampling)
            weights.unlink(missing_ok=True)  # of an earlier build: two sets of weights would be one too many
        else:
            with data.replacing(weights) as packed:
                pack_model(packed)
                _append(packed, None, tokens, sampling)
    files = (program,) if one_file else (program, weights)
    return Program(files, tuple(found.isa for found in levels), tuple(left_out))


def _append(file: Path, packed: Path | None, tokens: bytes, sampling: Mapping[str, float]) -> None:
    """Put a packed model (None: the file is one), the tokenizer and a trailer at the end of a file."""
    with file.open("r+b") as f:
        start = model_bytes = f.seek(0, os.SEEK_END)
        if packed:
            f.write(bytes(-start % PAGE))
            start = f.tell()
            with packed.open("rb") as model:
                shutil.copyfileobj(model, f, 1 << 20)
            model_bytes = f.tell() - start
        else:
            start = 0
        f.write(bytes(-f.tell() % constants("core/model.h", "bg_packed")["PACKED_ALIGN"]))
        trailer = {
            "magic": MAGIC,
            "model_offset": start,
            "model_bytes": model_bytes,
            "vocabulary_offset": f.tell(),
            "vocabulary_bytes": len(tokens),
            **sampling,
        }
        f.write(tokens)
        f.write(record("core/model.h", "bg_trailer", trailer))


def shared_layout(
    shape: ModelShape, platform: Platform, isa: str | None = None, plans: Sequence[Path] = ()
) -> tuple[list[ModelPlan], list[str]]:
    """Plans of all levels of a platform that read one level's layouts, best first, and the levels that do not.

    That level is `isa`, else the one of the first plan given, else the lowest with vector instructions.
    """
    names = [target.isa for target in targets.levels(platform)]
    given = [plan.for_build(file, shape, names) for file in plans]
    base = isa or (given[0].isa if given else names[max(len(names) - 2, 0)])
    if base not in names:
        raise UnsupportedError(f"ISA {base!r} is not of architecture {platform.arch!r}; known: {', '.join(names)}")
    known = {name: plan.of_model(shape, name, given) for name in names}
    layouts = {role: matrix.layout for role, matrix in known[base].matrices.items()}
    found = {name: _with_layouts(shape, known[name], layouts) for name in names}
    return [level for level in found.values() if level], [name for name in names if not found[name]]


def _with_layouts(shape: ModelShape, known: ModelPlan, layouts: dict[str, Layout]) -> ModelPlan | None:
    """A level's plan with these layouts of the roles, or None where it has no such kernels."""
    matrices = {}
    for role, matrix in shape.all_matrices.items():
        layout = layouts[role]
        matched = known.matrices[role] if known.matrices[role].layout == layout else _plan(matrix, known.isa, layout)
        if matched is None:
            return None
        matrices[role] = matched
    return ModelPlan(known.isa, matrices, known.sources, known.threads)


def _plan(matrix: GemmShape, isa: str, layout: Layout) -> MatrixPlan | None:
    """The static default of a level for a matrix in a layout; None where it has no kernel for that."""
    gemv = space.candidate_tiles("gemv", matrix, isa, layout)
    gemm = space.candidate_tiles("gemm", matrix, isa, layout)
    return MatrixPlan(layout, gemv[0], gemm[0]) if gemv and gemm else None
