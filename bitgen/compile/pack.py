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
    Codes,
    DenseType,
    Floats,
    Scales,
    dense_type,
    row_pieces,
)
from bitgen.checkpoints.rope import frequencies
from bitgen.checkpoints.tensors import FUSED, head_name, ternary_ends
from bitgen.compile import checksum
from bitgen.errors import BitgenError, UnsupportedError
from bitgen.headers import capacity, constants, declared, record
from bitgen.kernels.formats import FORMATS, Format
from bitgen.kernels.plan import ModelPlan
from bitgen.spec import HEAD_ROLE, DeltaShape, Layout, ModelShape, Progress, round_up

Head = Literal["certified", "f16", "int8"]

MAGIC, LANES = b"BITGENPK", 16
PIECE = 1 << 20  # weights that are packed at once
TINY = 2.0**-100
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
        "hadamard": shape.hadamard.block if shape.hadamard else 0,
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
    s, norms = checkpoint.shape, RowNorms(checkpoint.shape.vocab)
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


class RowNorms:
    """Norms of the rows of a ternary matrix, float32 [p(rows)], rounded up: runtime/core/ternary_head.c.

    A row's is at most sqrt(hidden) times the greatest float16 number, so it is finite.
    """

    def __init__(self, rows: int) -> None:
        self.of_rows = np.zeros(round_up(rows, LANES), np.float32)

    def add(self, rows: slice, codes: Codes, scales: Scales) -> None:
        """Some rows: codes int8 [n, K], scales float32 [n, G]."""
        weights = np.count_nonzero(codes.reshape(*scales.shape, -1), axis=2)
        self.of_rows[rows] = np.sqrt((weights * scales.astype(np.float64) ** 2).sum(axis=1)) * (1 + 2.0**-20) + TINY


def _rows(
    checkpoint: Checkpoint, name: str, plan: ModelPlan, types: Mapping[str, DenseType], norms: RowNorms
) -> Section:
    """Embedding or head: floats in their type, or panels of a ternary matrix, the norms of whose rows are kept."""
    if name in types:
        return _dense_matrix(checkpoint, name, types)
    return _ternary_matrix(checkpoint, name, plan.matrices[HEAD_ROLE].layout, norms)


def _ternary_matrix(checkpoint: Checkpoint, name: str, layout: Layout, norms: RowNorms) -> Section:
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
        row_scales, codes = _int8_rows(values)
        scales[rows] = row_scales[:n]
        if certified:
            certificate = _certificate(_whole_vectors(values), row_scales, codes)
            for of_all, of_rows in zip((uppers, residuals, norms), certificate, strict=True):
                of_all[rows] = of_rows[:n]
            if not np.isfinite(certificate).all():
                raise BitgenError(f"tensor {name} holds rows so long that logits would be infinite")
    yield from ([uppers], [residuals], [norms], [scales]) if certified else ([scales],)
    if certified:
        yield (_upper_bits(_int8_rows(values)[1]) for _, values in _dense(checkpoint, name))
        yield (_lower_bits(_int8_rows(values)[1]) for _, values in _dense(checkpoint, name))
    else:
        yield (_int8_rows(values)[1] for _, values in _dense(checkpoint, name))


def _columns(codes: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Codes plus 128, uint8 [n, blocks, 4, 64]: rows padded to whole blocks of SCREEN_COLUMNS."""
    columns = constants("simd/ops.h", "bg_screen")["SCREEN_COLUMNS"]
    padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % columns)))
    return (padded.view(np.uint8) ^ np.uint8(128)).reshape(len(codes), -1, 4, columns // 4)


def _upper_bits(codes: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """The upper six bits of each code, uint8 [n, blocks, 192], as runtime/simd/ops.h says."""
    upper = _columns(codes) >> 2
    four, two = upper & 15, upper >> 4
    nibbles = four[:, :, ::2] | four[:, :, 1::2] << 4
    return np.concatenate([nibbles.reshape(*nibbles.shape[:2], 128), _two_bits(two)], axis=2)


def _lower_bits(codes: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """The lower two, uint8 [n, blocks, 64]."""
    return _two_bits(_columns(codes) & 3)


def _two_bits(two: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Columns 64 c + j at 2 c of byte j."""
    packed = two[:, :, 0] | two[:, :, 1] << 2 | two[:, :, 2] << 4 | two[:, :, 3] << 6
    return np.asarray(packed, np.uint8)


def _int8_rows(rows: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int8]]:
    """Row scales float32 [p(n)] and rows int8 [n, p(hidden)]: absmax of a row to 127, half to even."""
    n, hidden = rows.shape
    values = rows.astype(np.float32)
    scales = np.zeros(round_up(n, LANES), np.float32)
    scales[:n] = np.maximum(np.abs(values).max(axis=1), np.float32(1e-30)) / np.float32(127)
    values /= scales[:n, None]
    codes = np.zeros((n, round_up(hidden, LANES)), np.int8)
    np.rint(values, out=codes[:, :hidden], casting="unsafe")
    return scales, codes


def _certificate(
    head: Floats, scales: npt.NDArray[np.float32], codes: npt.NDArray[np.int8]
) -> tuple[npt.NDArray[np.float32], ...]:
    """Residuals of the upper bits, residuals and norms, float32 [p(n)] of n rows, rounded up: what
    runtime/core/certified_head.c bounds logits with.

    For a row w with scale s and codes q, the norm is |s q| and the residual |w - s q| + gamma (|w| + |s q|), gamma
    being more than float arithmetic can add: (hidden / 16 + 32) 2^-23. The upper bits are codes u of their own, in
    the middle of the four that share them; the norm is the greater of both. TINY is more than numbers below the normal
    floats, which have fewer bits, can add.
    """
    n = len(head)
    uppers, residuals, norms = np.zeros((3, *scales.shape), np.float32)
    gamma, up = (head.shape[1] / 16 + 32) * 2.0**-23, 1 + 2.0**-20
    rows, steps = head.astype(np.float64), scales[:n, None].astype(np.float64)
    length, norm = _lengths(rows), np.zeros(n)
    off = []  # |w - s q|, |w - s u|
    for approximate in (lambda: codes, lambda: (codes & ~np.int8(3)) + 1.5):  # one after the other: memory may be short
        near = approximate() * steps
        norm = np.maximum(norm, _lengths(near))
        off.append(_lengths(np.subtract(rows, near, out=near)))
    with np.errstate(over="ignore"):
        norms[:n] = norm * up + TINY
        residuals[:n], uppers[:n] = ((each + gamma * (length + norm)) * up + TINY for each in off)
    return uppers, residuals, norms


def _lengths(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The Euclidean norm of each row, with no copy of them."""
    return np.asarray(np.sqrt(np.einsum("ij,ij->i", rows, rows)))


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
