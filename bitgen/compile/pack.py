"""Packed models: a checkpoint laid out for one library's kernels, written once and memory-mapped from then on.

The file is the header `bg_header` of runtime/core/model.h and a fixed sequence of aligned sections (core/model.c reads
them in the same order). It appears by atomic rename, keyed by the source file's identity and the layouts, and carries
its layout key, so that a library with other kernels refuses it, and checksums, so that damage is noticed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from bitgen import data, store
from bitgen.checkpoints.checkpoint import (
    NARROW,
    Checkpoint,
    DenseType,
    Floats,
    dense_type,
    row_pieces,
)
from bitgen.checkpoints.rope import frequencies
from bitgen.checkpoints.tensors import FUSED, head_name, ternary_ends
from bitgen.compile import checksum, head_rows
from bitgen.compile.head_rows import LANES
from bitgen.errors import BitgenError, UnsupportedError
from bitgen.headers import capacity, constants, declared, record
from bitgen.kernels.formats import FORMATS, Format
from bitgen.kernels.plan import ModelPlan
from bitgen.spec import HEAD_ROLE, DeltaShape, Layout, ModelShape, Progress, round_up

Head = Literal["certified", "f16", "int8"]

MAGIC = b"BITGENPK"
PIECE = 1 << 20  # weights that are packed at once
RATES = "rates"  # of Gated DeltaNet, in what says the types of float matrices
_RATES = ("ssm_alpha", "ssm_beta")  # the rows that give decay and beta
_FIRST_PART = {  # role -> the first of its parts in enum bg_parts of runtime/core/model.h
    "qkv": "PART_Q",
    "o": "PART_O",
    "gate_up": "PART_GATE",
    "down": "PART_DOWN",
    "delta_in": "PART_DELTA_QKV",
    "delta_out": "PART_DELTA_OUT",
    **{role: f"PART_{role.upper()}" for role in ("q", "k", "v", "gate", "up")},
}
_HEAD = {  # (head, tied) -> enum bg_head of runtime/core/model.h
    ("f16", True): "HEAD_TIED",
    ("f16", False): "HEAD_OWN",
    ("int8", True): "HEAD_I8",
    ("int8", False): "HEAD_I8",
    ("certified", True): "HEAD_TIED_CERTIFIED",
    ("certified", False): "HEAD_OWN_CERTIFIED",
    ("ternary", True): "HEAD_TIED_TERNARY",
    ("ternary", False): "HEAD_OWN_TERNARY",
}


def _model_h(enum: str) -> dict[str, int]:
    """The constants of an enum of runtime/core/model.h."""
    return constants("core/model.h", enum)


def header(
    checkpoint: Checkpoint, plan: ModelPlan, head: Head, dense: Mapping[str, DenseType], file_bytes: int
) -> bytes:
    """The first bytes of a packed file: fields of `bg_header` that have the name of one of the shape are that.

    Its checksum is zero until the file is complete.
    """
    shape, packed = checkpoint.shape, _model_h("bg_packed")
    fields = {
        **vars(shape),
        "magic": MAGIC,
        "version": packed["PACKED_VERSION"],
        "header_bytes": packed["PACKED_HEADER"],
        "rope_dims": shape.rotary,
        "rope_magnitude": shape.rope_scaling.magnitude if shape.rope_scaling else 1.0,
        "file_bytes": file_bytes,
        "activation": _model_h("bg_activation")[f"ACTIVATION_{shape.activation.upper()}"],
        "head": _model_h("bg_head")[_HEAD["ternary" if is_ternary(shape, head) else head, shape.tied]],
        "embedding": _row_type(dense.get("token_embd.weight")),
        "output": _dense_type(dense.get(head_name(shape), "f16")),
        "layout": plan.layout_key.encode(),
        "checksum": bytes(capacity("core/model.h", "bg_header", "checksum")),
        **_delta_fields(shape.delta),
        "delta_rates": _dense_type(dense.get(RATES, "f16")),
        "hadamard_block": shape.hadamard.block if shape.hadamard else 0,
        "hadamard_signed": shape.hadamard is not None and shape.hadamard.signed,
        "hadamard_regrouped": shape.hadamard is not None and shape.hadamard.regrouped,
    }
    return record("core/model.h", "bg_header", fields)


def _delta_fields(delta: DeltaShape | None) -> dict[str, int]:
    """The header's fields of Gated DeltaNet, zeros without it."""
    names = ("period", "key_heads", "value_heads", "key_dim", "value_dim", "taps")
    return {f"delta_{name}": getattr(delta, name) if delta else 0 for name in names}


def _dense_type(type: DenseType) -> int:
    return constants("simd/ops.h", "bg_dense_type")[f"DENSE_{type.upper()}"]


def _row_type(type: DenseType | None) -> int:
    """The type of embedding rows; None: they are ternary."""
    return _model_h("bg_embedding")["EMBEDDING_TERNARY"] if type is None else _dense_type(type)


def is_ternary(shape: ModelShape, head: Head) -> bool:
    """Whether the head is packed as codes and scales of groups, which choose tokens with certainty too."""
    return head == "certified" and shape.ternary_head


def check_head(shape: ModelShape, head: Head) -> None:
    """UnsupportedError where a head cannot be kept so."""
    if head == "int8" and shape.ternary_head:
        raise UnsupportedError(
            f"the head of {shape.name} is ternary: int8 codes would round it and take four times its bytes; "
            "take --head certified, which reads it as it is"
        )


def _dense_types(checkpoint: Checkpoint, head: Head) -> dict[str, DenseType]:
    """Name -> type of the embedding and of the output matrix, as far as they are packed as floats, and of RATES."""
    s = checkpoint.shape
    names = dict.fromkeys(("token_embd.weight", head_name(s)))
    ternary = ternary_ends(s) if head == "certified" else ()
    types = {name: dense_type(checkpoint, name, (s.vocab, s.hidden)) for name in names if name not in ternary}
    if s.delta:
        types[RATES] = _rates_type(checkpoint, s.delta)
    return types


def _rates_type(checkpoint: Checkpoint, delta: DeltaShape) -> DenseType:
    """The smallest type that holds what gives decay and beta exactly, of all layers."""
    s = checkpoint.shape
    found = {
        dense_type(checkpoint, f"blk.{n}.{name}.weight", (delta.value_heads, s.hidden))
        for n in range(s.layers)
        if not s.attends(n)
        for name in _RATES
    }
    return found.pop() if len(found) == 1 else "f32"


def head_row_bytes(packed: Path, head: Head) -> int:
    """Bytes of a row of an output matrix that is not ternary which are read to choose a token; certified: of the many
    rows that lose."""
    with packed.open("rb") as file:
        start = declared("core/model.h").from_buffer("bg_header *", file.read(_model_h("bg_packed")["PACKED_HEADER"]))
    screen, hidden = constants("simd/ops.h", "bg_screen"), int(start.hidden)
    upper = -(-hidden // screen["SCREEN_COLUMNS"]) * screen["SCREEN_UPPER"]
    number = 4 if start.output == _dense_type("f32") else 2
    return {"f16": number * hidden, "int8": hidden + 4, "certified": upper + 12}[head]


def path_for(sources: Sequence[Path], plan: ModelPlan, head: Head, reading: str) -> Path:
    """Where the packed form of a model is cached, by its file or the parts of it.

    The key covers the layouts, the head, how the files were read and each one's identity: size, time of change,
    its first MiB (all of the metadata's start) and 64 samples of 4 KiB spread over the rest. Reading all of a
    model at every start would cost more than loading it.
    """
    stats = [source.stat() for source in sources]
    version = _model_h("bg_packed")["PACKED_VERSION"]
    key = f"{version} {plan.layout_key} {head} {reading} " + " ".join(f"{s.st_size} {s.st_mtime_ns}" for s in stats)
    digest = hashlib.sha256(key.encode())
    for source, stat in zip(sources, stats, strict=True):
        with source.open("rb") as f:
            digest.update(f.read(1 << 20))
            for i in range(64):
                f.seek(i * stat.st_size // 64)
                digest.update(f.read(4096))
    return data.cached("packed") / f"{store.slug(sources[0].stem)}-{plan.isa}-{digest.hexdigest()[:16]}.bgpk"


def write(
    path: Path, checkpoint: Checkpoint, plan: ModelPlan, head: Head = "f16", progress: Progress | None = None
) -> None:
    """Write a packed model, one matrix or a few rows in memory at a time; nothing is left behind on failure."""
    if len(plan.layout_key) >= capacity("core/model.h", "bg_header", "layout"):  # it ends in a NUL
        raise UnsupportedError(f"the layout key {plan.layout_key!r} is longer than a packed header holds")
    shape = checkpoint.shape
    _check(shape)
    check_head(shape, head)
    certificate = 1 if is_ternary(shape, head) else 6
    sections_of_head = {"certified": certificate, "f16": 0, "int8": 2}[head] + (head != "int8" and not shape.tied)
    total = 3 + bool(shape.window) + bool(shape.hadamard and shape.hadamard.signed) * len(_widths(shape))
    total += sum(_sections_of_layer(shape, n) for n in range(shape.layers)) + sections_of_head
    dense = _dense_types(checkpoint, head)
    with data.replacing(path, parents=True) as part, part.open("w+b") as f:
        f.write(bytes(_model_h("bg_packed")["PACKED_HEADER"]))
        digest = checksum.new()
        for done, section in enumerate(_sections(checkpoint, plan, head, dense), 1):
            _write_section(f, section, digest)
            if progress:
                progress(done, total)
        checksum.finish(f, header(checkpoint, plan, head, dense, f.tell()), digest)


def expected_bytes(shape: ModelShape, plan: ModelPlan, head: Head) -> int:
    """Bytes of a packed model but for its norms: matrices, the embedding, the head, the codes of a head of floats."""
    layers = sum(shape.layers_with(role) * _weight_bytes(shape, plan, role) for role in shape.matrices)
    ternary = len(ternary_ends(shape)) if head == "certified" else 0
    halves = 1 + (head != "int8" and not shape.tied) - ternary
    codes = head != "f16" and not is_ternary(shape, head)
    ends = ternary * _weight_bytes(shape, plan, HEAD_ROLE) if ternary else 0
    return layers + ends + shape.vocab * shape.hidden * (2 * halves + codes)


def _weight_bytes(shape: ModelShape, plan: ModelPlan, role: str) -> int:
    layout = plan.matrices[role].layout
    return FORMATS[layout.format].geometry(shape.all_matrices[role], layout).weight_bytes


def _check(shape: ModelShape) -> None:
    """UnsupportedError where the runtime has no such model (delta_is_sane and hadamard_is_sane of core/model.c)."""
    delta, hadamard = shape.delta, shape.hadamard
    if delta and (shape.sub_norms or shape.input_norms or shape.post_norms):
        raise UnsupportedError("layers with Gated DeltaNet have no norms but those before attention and FFN")
    if delta and delta.period > shape.layers:
        raise UnsupportedError(f"of {shape.layers} layers none attends: only every {delta.period}th would")
    if hadamard and shape.input_norms:
        raise UnsupportedError("a rotation before matrices that have norms of their own is not supported")
    for width in _widths(shape):
        if hadamard and width % hadamard.block:
            raise UnsupportedError(f"a rotation in blocks of {hadamard.block} does not divide rows of {width} numbers")


def _widths(shape: ModelShape) -> list[int]:
    """The widths of what matrices multiply, in the order of WIDTH_* of core/model.h."""
    delta = [shape.delta.inner] if shape.delta else []
    return [shape.hidden, shape.heads * shape.head_dim, shape.intermediate, *delta]


def _sections_of_layer(shape: ModelShape, n: int) -> int:
    of_delta = 0 if shape.attends(n) else 4
    return len(shape.layer_norms(n)) + len(shape.layer_roles(n)) + 1 + of_delta


Section = Iterable[npt.NDArray[Any]]
"""A section's bytes in pieces, made as they are written."""


def _write_section(f: BinaryIO, section: Section, digest: hashlib.blake2b) -> None:
    """Append one section, and zeros up to where the next begins."""
    for piece in section:
        raw = np.ascontiguousarray(piece).data
        digest.update(raw)
        f.write(raw)
    end = bytes(-f.tell() % _model_h("bg_packed")["PACKED_ALIGN"])
    digest.update(end)
    f.write(end)


def _sections(checkpoint: Checkpoint, plan: ModelPlan, head: Head, dense: Mapping[str, DenseType]) -> Iterator[Section]:
    """Every section of the file, in the order that the runtime walks it. Each is to be read before the next."""
    s, norms = checkpoint.shape, head_rows.RowNorms(checkpoint.shape.vocab)
    yield _rows(checkpoint, "token_embd.weight", plan, dense, norms)
    yield [_norm(checkpoint, "output_norm.weight", s.hidden)]
    for windowed in (False, True) if s.window else (False,):
        yield [_whole_vectors(frequencies(s, windowed)[None])]
    for width in _widths(s) if s.hadamard and s.hadamard.signed else ():
        yield [_norm(checkpoint, f"hadamard_signs.{width}", width)]
    for n in range(s.layers):
        for norm, width in s.layer_norms(n).items():
            yield [_norm(checkpoint, f"blk.{n}.{norm}.weight", width)]
        parts = _model_h("bg_parts")
        scales = np.zeros(parts["SCALES"], np.float32)
        for role in s.layer_roles(n):
            yield _fused(checkpoint, n, role, plan.matrices[role].layout, scales[parts[_FIRST_PART[role]] :])
        yield [scales]
        if s.delta and not s.attends(n):
            yield from _delta_floats(checkpoint, n, s.delta, dense[RATES])
    name = head_name(s)
    if head != "int8" and not s.tied:
        yield _rows(checkpoint, name, plan, dense, norms)
    if is_ternary(s, head):
        yield [norms.of_rows]
    elif head != "f16":
        yield from _int8_matrix(checkpoint, name, certified=head == "certified")


def _delta_floats(checkpoint: Checkpoint, n: int, delta: DeltaShape, type: DenseType) -> Iterator[Section]:
    """What a layer with Gated DeltaNet has in floats, as runtime/core/model.h lays it out."""
    hidden, heads = checkpoint.shape.hidden, delta.value_heads
    rates = np.zeros((len(_RATES), round_up(heads, LANES), round_up(hidden, LANES)), np.float32)
    for rows, name in zip(rates, _RATES, strict=True):
        rows[:heads, :hidden] = _floats(checkpoint, f"blk.{n}.{name}.weight", (heads, hidden))
    yield [NARROW[type](rates)]
    taps = _floats(checkpoint, f"blk.{n}.ssm_conv1d.weight", (delta.channels, delta.taps))
    yield [_whole_vectors(taps.T)]
    for name in ("ssm_a", "ssm_dt.bias"):
        yield [_norm(checkpoint, f"blk.{n}.{name}", heads)]


def _fused(checkpoint: Checkpoint, layer: int, role: str, layout: Layout, scales: npt.NDArray[np.float32]) -> Section:
    """One fused matrix, packed piece by piece; the scale of each part is written to the first of `scales`.

    A panel may begin in one part and end in the next, whose rows then wait for it. Scales of groups go with their
    rows, and 1 is written.
    """
    shape, form = checkpoint.shape, FORMATS[layout.format]
    gemm = shape.matrices[role]
    panel = layout.bm if form.by_panels else gemm.m
    step = max(panel, PIECE // gemm.k // panel * panel)  # rows of a piece
    groups = gemm.k // gemm.group if gemm.group else 0
    waiting, waiting_scales, seen = np.empty((0, gemm.k), np.int8), np.empty((0, groups), np.float32), 0
    for part, (name, rows) in enumerate(zip(FUSED[role], shape.segments[role], strict=True)):
        tensor = f"blk.{layer}.{name}.weight"
        codes, scale = checkpoint.ternary(tensor)
        _expect(tensor, codes, (rows, gemm.k))
        scales[part] = 1.0 if gemm.group else float(scale)
        of_rows = np.asarray(scale, np.float32) if gemm.group else np.empty((rows, 0), np.float32)
        _expect(f"{tensor}'s scales", of_rows, (rows, groups))
        while len(codes):
            more = step - len(waiting)
            piece, piece_scales = codes[:more], of_rows[:more]
            codes, of_rows, seen = codes[more:], of_rows[more:], seen + len(piece)
            if len(waiting):
                piece, piece_scales = np.concatenate([waiting, piece]), np.concatenate([waiting_scales, piece_scales])
            whole = len(piece) if seen == gemm.m else len(piece) // panel * panel
            if whole:
                yield _packed(tensor, form, layout, piece[:whole], piece_scales[:whole])
            waiting, waiting_scales = piece[whole:], piece_scales[whole:]


def _packed(
    tensor: str, form: Format, layout: Layout, codes: npt.NDArray[np.int8], scales: npt.NDArray[np.float32]
) -> npt.NDArray[np.uint8]:
    """Whole panels of a matrix as a format packs them; errors name the tensor."""
    try:
        return form.packer(codes, layout.bm, layout.bk, *([scales] if form.grouped else []))
    except BitgenError as error:
        raise type(error)(f"tensor {tensor}: {error}") from None


def _rows(
    checkpoint: Checkpoint, name: str, plan: ModelPlan, types: Mapping[str, DenseType], norms: head_rows.RowNorms
) -> Section:
    """Embedding or head: floats in their type, or panels of a ternary matrix, the norms of whose rows are kept."""
    if name in types:
        return _dense_matrix(checkpoint, name, types)
    return _ternary_matrix(checkpoint, name, plan.matrices[HEAD_ROLE].layout, norms)


def _ternary_matrix(checkpoint: Checkpoint, name: str, layout: Layout, norms: head_rows.RowNorms) -> Section:
    """Whole panels, some rows at a time."""
    shape, form = checkpoint.shape, FORMATS[layout.format]
    panel = layout.bm if form.by_panels else shape.vocab
    step = max(panel, PIECE // shape.hidden // panel * panel)
    for start in range(0, shape.vocab, step):
        rows = slice(start, min(start + step, shape.vocab))
        codes, scales = checkpoint.ternary_rows(name, rows)
        _expect(name, codes, (rows.stop - start, shape.hidden))
        _expect(f"{name}'s scales", scales, (rows.stop - start, shape.hidden // shape.group))
        yield _packed(name, form, layout, codes, scales)
        norms.add(rows, codes, scales)


def _dense(checkpoint: Checkpoint, name: str) -> Iterator[tuple[slice, Floats]]:
    """The embedding or the output matrix, some rows at a time: the largest tensors of a model."""
    shape = (checkpoint.shape.vocab, checkpoint.shape.hidden)
    for rows in row_pieces(shape):
        values = checkpoint.dense(name, rows)
        _expect(name, values, (rows.stop - rows.start, shape[1]))
        if not np.isfinite(values).all():
            raise BitgenError(f"tensor {name} holds NaN or infinite values")
        yield rows, values


def _dense_matrix(checkpoint: Checkpoint, name: str, types: Mapping[str, DenseType]) -> Section:
    """A float matrix in its type, its rows padded with zeros to whole vectors."""
    narrow = NARROW[types[name]]
    return (narrow(_whole_vectors(values)) for _, values in _dense(checkpoint, name))


def _int8_matrix(checkpoint: Checkpoint, name: str, certified: bool) -> Iterator[Section]:
    """Sections of an int8 head: residuals and norms where certified, then the row scales, then the rows.

    The rows come last and would not fit in memory, so they are made twice; of a certified head thrice, for the upper
    bits of all rows lie before the lower ones.
    """
    uppers, residuals, norms, scales = np.zeros((4, round_up(checkpoint.shape.vocab, LANES)), np.float32)
    for rows, values in _dense(checkpoint, name):
        n = len(values)
        row_scales, codes = head_rows.int8_rows(values)
        scales[rows] = row_scales[:n]
        if certified:
            certificate = head_rows.certificate(_whole_vectors(values), row_scales, codes)
            for of_all, of_rows in zip((uppers, residuals, norms), certificate, strict=True):
                of_all[rows] = of_rows[:n]
            if not np.isfinite(certificate).all():
                raise BitgenError(f"tensor {name} holds rows so long that logits would be infinite")
    yield from ([uppers], [residuals], [norms], [scales]) if certified else ([scales],)
    if certified:
        yield (head_rows.upper_bits(head_rows.int8_rows(values)[1]) for _, values in _dense(checkpoint, name))
        yield (head_rows.lower_bits(head_rows.int8_rows(values)[1]) for _, values in _dense(checkpoint, name))
    else:
        yield (head_rows.int8_rows(values)[1] for _, values in _dense(checkpoint, name))


def _norm(checkpoint: Checkpoint, name: str, width: int) -> npt.NDArray[np.float32]:
    """A norm's weights, or another vector, as float32, padded with zeros to whole vectors."""
    return np.pad(_floats(checkpoint, name, (width,)), (0, round_up(width, LANES) - width))


def _floats(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """A small float tensor, whole."""
    values = checkpoint.dense(name)
    _expect(name, values, shape)
    return values.astype(np.float32)


def _whole_vectors(rows: Floats) -> Floats:
    """Rows padded with zeros to whole vectors."""
    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % LANES)))


def _expect(name: str, tensor: npt.NDArray[Any], shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise BitgenError(f"tensor {name} has shape {list(tensor.shape)}, the model needs {list(shape)}")
