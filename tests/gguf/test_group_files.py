"""Files whose matrices have a scale for every group of a row: each published type, by hand, and what is odd."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import ternary_bytes as by_hand
from gguf_files import SHAPES, TINY_LLAMA, Q, Stored, changed, contents, store

from bitgen.checkpoints import reference, synth
from bitgen.checkpoints.tensors import is_ternary, tensor_shapes
from bitgen.cli.facts import lines
from bitgen.errors import FormatError, UnsupportedError
from bitgen.gguf import blocks, doubts, info, types
from bitgen.gguf.reader import GgufCheckpoint, read_gguf
from bitgen.gguf.writer import FILE_TYPES, default_type, write_gguf
from bitgen.spec import ModelShape

QWEN3 = dataclasses.replace(SHAPES["qwen3"], layers=1, tied=True)
HUNYUAN = dataclasses.replace(SHAPES["hunyuan"], layers=1)
LLAMA = dataclasses.replace(TINY_LLAMA, layers=1)
PUBLISHED = {
    "Q1_0": QWEN3,
    "Q2_0": QWEN3,
    "Q2_0 of 128": QWEN3,
    "PQ2_0": dataclasses.replace(QWEN3, tied=False),
    "PTQ1_0": QWEN3,
    "TQ1_0": LLAMA,
    "TQ2_0": dataclasses.replace(SHAPES["minicpm"], layers=1),
    "STQ1_0 as 42": HUNYUAN,
    "STQ1_0": HUNYUAN,
}
"""Type -> a model as it is published in it: of Q2_0 and its like the embedding and the head too."""
TOKENS = [1, 17, 299, 5]

Weights = dict[str, tuple[np.ndarray, np.ndarray]]
"""Name -> codes and scales."""


def kind_of(type: str) -> Callable[[np.ndarray], np.ndarray]:
    """What makes ternary codes into such as a type holds."""
    return by_hand.sparse if "STQ" in type else by_hand.binary if type == "Q1_0" else lambda codes: codes


def weights_of(shape: ModelShape, block: int, type: str) -> Weights:
    rng, weights = np.random.default_rng(block), {}
    for name, dims in tensor_shapes(shape).items():
        if is_ternary(name):
            codes = rng.integers(-1, 2, dims).astype(np.int8)
            scales = (rng.integers(64, 192, (dims[0], dims[1] // block)) / 2048).astype(np.float32)
            weights[name] = kind_of(type)(codes), scales
    return weights


def published(path: Path, type: str) -> tuple[Path, ModelShape, Weights]:
    """A file of one type, its matrices and embedding by hand."""
    id, block, writer = by_hand.WRITERS[type]
    shape = PUBLISHED[type]
    metadata, tensors = contents(shape)
    weights = weights_of(shape, block, type)
    for name, (codes, scales) in weights.items():
        tensors[name] = (codes.shape, id, writer(codes, scales))
    if shape.architecture in ("qwen3", "hunyuan-dense"):
        for name in ("token_embd.weight", "output.weight")[: 2 - shape.tied]:
            codes = np.random.default_rng(7).integers(-1, 2, (shape.vocab, shape.hidden)).astype(np.int8)
            codes = kind_of(type)(codes)
            scales = np.full((shape.vocab, shape.hidden // block), 0.0625, np.float32)
            tensors[name] = (codes.shape, id, writer(codes, scales))
            weights[name] = codes, scales
    ternary = "token_embd.weight" in weights
    shape = dataclasses.replace(
        shape, group=block, binary=type == "Q1_0", ternary_embedding=ternary, ternary_head=ternary
    )
    return store(path, metadata, tensors), shape, weights


class Plain(synth.SynthCheckpoint):
    """The same model without a file: weights as they were made, norms of the files of `contents`."""

    def __init__(self, shape: ModelShape, weights: Weights) -> None:
        super().__init__(shape, seed=1)
        self.weights = weights

    def ternary(self, name: str) -> tuple[np.ndarray, Any]:
        return self.weights[name]

    def dense(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        if name in self.weights:
            codes, scales = self.weights[name]
            return (codes * scales.repeat(codes.shape[1] // scales.shape[1], axis=1)).astype(np.float16)[rows]
        return super().dense(name, rows)


@pytest.mark.parametrize("type", PUBLISHED)
def test_published_types(tmp_path: Path, type: str) -> None:
    path, shape, weights = published(tmp_path / "m.gguf", type)
    checkpoint = read_gguf(path)
    assert checkpoint.shape == shape
    assert_weights(checkpoint, weights)
    facts = info.describe(path)
    assert facts["scale_group"] == shape.group and "unsupported" not in facts
    text = dict(line.split("  ", 1) for line in lines(facts))
    assert facts["binary"] == (type == "Q1_0") == ("binary" in text["ternary weights"])
    assert text["scales"].strip() == f"one for every {shape.group} weights of a row"
    name = "STQ1_0" if "STQ" in type else type.replace(" of ", "_G")
    assert facts["tensors"][name] == len(weights)
    got = reference.forward(checkpoint, TOKENS)
    assert np.array_equal(got, reference.forward(Plain(shape, weights), TOKENS))


def assert_weights(checkpoint: GgufCheckpoint, weights: Weights) -> None:
    for name, (codes, scales) in weights.items():
        if is_ternary(name):
            got, got_scales = checkpoint.ternary(name)
            assert np.array_equal(got, codes) and np.array_equal(got_scales, scales), name
        else:
            values = codes * scales.repeat(codes.shape[1] // scales.shape[1], axis=1)
            assert np.array_equal(checkpoint.dense(name), values)
            got, got_scales = checkpoint.ternary_rows(name, slice(3, 20))
            assert np.array_equal(got, codes[3:20]) and np.array_equal(got_scales, scales[3:20])


@pytest.mark.parametrize("type", PUBLISHED)
def test_conversions_keep_the_weights(tmp_path: Path, type: str) -> None:
    """To every type that holds such groups; and its bytes are those by hand."""
    path, shape, weights = published(tmp_path / "m.gguf", type)
    to = [name for name, known in FILE_TYPES.items() if shape.group in known.groups and known.binary <= shape.binary]
    every = {64: ["q2_0"], 128: ["q2_0", "pq2_0", "ptq1_0"], 256: ["tq1_0", "tq2_0"]}[shape.group]
    assert to == every + ["q1_0"] * shape.binary
    write_gguf(tmp_path / "default.gguf", read_gguf(path))
    for name in to:
        write_gguf(tmp_path / f"{name}.gguf", read_gguf(path), name)
        copy = read_gguf(tmp_path / f"{name}.gguf")
        assert copy.shape == dataclasses.replace(shape, binary=name == "q1_0")
        assert_weights(copy, weights)
        tensor = copy.container.tensors[Q]
        writer = {"q2_0": by_hand.q2_0, "pq2_0": by_hand.q2_0}.get(name) or getattr(by_hand, name)
        assert copy.container.bytes_of(tensor).tobytes() == writer(*weights[Q]), name
        if name == default_type(shape):
            assert (tmp_path / "default.gguf").read_bytes() == (tmp_path / f"{name}.gguf").read_bytes()
        write_gguf(tmp_path / "again.gguf", copy, name)
        assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / f"{name}.gguf").read_bytes()


# ---- which group ----


def grouped(tensors: dict[str, Stored], names: list[str], type: str, scales: np.ndarray | None = None) -> None:
    """Make some matrices of a model into ones of scaled blocks."""
    id, block, writer = by_hand.WRITERS[type]
    for name in names:
        m, k = tensors[name][0]
        codes = np.random.default_rng(3).integers(-1, 2, (m, k)).astype(np.int8)
        if scales is None:
            scales_here = np.random.default_rng(4).integers(1, 99, (m, k // block)) / 64
        else:
            scales_here = np.resize(scales, (m, k // block))
        tensors[name] = ((m, k), id, writer(codes, scales_here))


DOWN = "blk.1.ffn_down.weight"


def test_several_scales_in_one_late_matrix_make_the_group(tmp_path: Path) -> None:
    """All other matrices have one scale each, which every group repeats."""

    def change(metadata: dict, tensors: dict) -> None:
        grouped(tensors, list(filter(is_ternary, tensors)), "TQ2_0", np.array([0.5]))
        grouped(tensors, [DOWN], "TQ2_0")

    checkpoint = read_gguf(changed(tmp_path / "m.gguf", change))
    assert checkpoint.shape.group == 256
    assert (np.asarray(checkpoint.ternary(Q)[1]) == 0.5).all()
    assert len(np.unique(checkpoint.ternary(DOWN)[1])) > 9


def test_the_finest_blocks_make_the_group(tmp_path: Path) -> None:
    """Coarser blocks repeat their scales; blocks finer than the group must agree, which is all but one file."""

    def change(metadata: dict, tensors: dict) -> None:
        grouped(tensors, list(filter(is_ternary, tensors)), "TQ2_0")
        grouped(tensors, [DOWN], "Q2_0")

    checkpoint = read_gguf(changed(tmp_path / "m.gguf", change))
    assert checkpoint.shape.group == 64
    scales = np.asarray(checkpoint.ternary(Q)[1])
    assert scales.shape == (256, 4) and (scales == scales[:, :1]).all()

    def one_scale(metadata: dict, tensors: dict) -> None:
        change(metadata, tensors)
        grouped(tensors, [DOWN], "Q2_0", np.array([0.5]))

    checkpoint = read_gguf(changed(tmp_path / "m.gguf", one_scale))
    assert checkpoint.shape.group == 256 and (np.asarray(checkpoint.ternary(DOWN)[1]) == 0.5).all()


def test_scales_of_zeros_do_not_count(tmp_path: Path) -> None:
    """A block of zeros may have any scale, and a scale of 0 makes zeros of any block."""
    codes = np.ones((256, 256), np.int8)
    codes[3], scales = 0, np.full((256, 1), 0.5)
    scales[3], scales[4] = 7, 0

    def change(metadata: dict, tensors: dict) -> None:
        tensors[Q] = ((256, 256), types.TQ2_0, by_hand.tq2_0(codes, scales))

    checkpoint = read_gguf(changed(tmp_path / "m.gguf", change))
    got, scale = checkpoint.ternary(Q)
    assert checkpoint.shape.group == 0 and scale == 0.5
    codes[4] = 0
    assert np.array_equal(got, codes)


def test_a_matrix_of_zeros(tmp_path: Path) -> None:
    def change(metadata: dict, tensors: dict) -> None:
        grouped(tensors, list(filter(is_ternary, tensors)), "TQ1_0")
        tensors[Q] = ((256, 256), types.TQ1_0, by_hand.tq1_0(np.zeros((256, 256), np.int8), np.zeros((256, 1))))

    checkpoint = read_gguf(changed(tmp_path / "m.gguf", change))
    codes, scales = checkpoint.ternary(Q)
    assert not codes.any() and not np.asarray(scales).any()
    assert np.isfinite(reference.forward(checkpoint, TOKENS)).all()


@pytest.mark.parametrize("type", ["Q2_0", "PQ2_0", "PTQ1_0", "TQ1_0", "TQ2_0"])
def test_negative_scales_are_read(tmp_path: Path, type: str) -> None:
    """Each stands for negated weights, and a matrix of +s and -s has one scale."""

    def file(scales: list[float]) -> GgufCheckpoint:
        def change(metadata: dict, tensors: dict) -> None:
            grouped(tensors, [Q], type, np.array(scales))

        return read_gguf(changed(tmp_path / "m.gguf", change))

    (plus, scale), one = file([0.5]).ternary(Q), file([0.5, 0.5, -0.5])
    codes, got = one.ternary(Q)
    assert one.shape.group == 0 and got == scale == 0.5
    block = by_hand.WRITERS[type][1]
    signs = np.resize([1, 1, -1], (256, 256 // block)).repeat(block, axis=1)
    assert np.array_equal(codes, plus * signs)
    several = file([0.5, 0.25, -0.5])
    assert several.shape.group == block and (np.asarray(several.ternary(Q)[1]) > 0).all()


@pytest.mark.parametrize("type", ["Q2_0", "PQ2_0", "PTQ1_0", "TQ1_0", "TQ2_0"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scales_that_are_no_numbers_are_errors(tmp_path: Path, type: str, bad: float) -> None:
    def change(metadata: dict, tensors: dict) -> None:
        grouped(tensors, [Q], type, np.array([0.5, 0.25, bad]))

    with pytest.raises(FormatError, match=r"blk\.0\.attn_q\.weight: the scale is (nan|inf)"):
        read_gguf(changed(tmp_path / "m.gguf", change)).ternary(Q)


# ---- what is refused ----


@pytest.mark.parametrize("type", ["Q2_0", "Q2_0 of 128", "PQ2_0"])
def test_a_file_of_four_codes_is_not_ternary(tmp_path: Path, type: str) -> None:
    def change(metadata: dict, tensors: dict) -> None:
        grouped(tensors, list(filter(is_ternary, tensors)), type)
        shape, id, data = tensors[Q]
        tensors[Q] = (shape, id, data[:2] + b"\x0c" + data[3:])  # the second weight is +2

    path = changed(tmp_path / "m.gguf", change)
    reason = rf"attn_q.weight: it uses the fourth code of {type.split()[0]}, \+2, in 1 of .* are not ternary"
    with pytest.raises(UnsupportedError, match=reason):
        read_gguf(path).ternary(Q)
    assert "fourth code" in info.describe(path)["unsupported"]


@pytest.mark.parametrize(
    ("type", "nbytes"),
    [(142, 256 * 66), (142, 256 * 72), (143, 256 * 54), (143, 256 * 60), (43, 256 * 66), (43, 256 * 34)],
)
def test_other_types_by_the_same_numbers(tmp_path: Path, type: int, nbytes: int) -> None:
    """142 and 143 were types of ik_llama.cpp, and who counts on from llama.cpp's 42 comes to 43."""
    path = changed(tmp_path / "m.gguf", lambda _, t: t.update({Q: ((256, 256), type, bytes(nbytes))}))
    with pytest.raises(FormatError, match=f"tensors of type {type} do not fit .*another type by this number"):
        read_gguf(path)


def test_groups_that_do_not_divide_the_model(tmp_path: Path) -> None:
    """Where a matrix holds several scales, every matrix must be whole groups."""
    shape = dataclasses.replace(QWEN3, intermediate=64 * 5)

    def change(metadata: dict, tensors: dict) -> None:
        grouped(tensors, [Q], "PQ2_0")

    with pytest.raises(FormatError, match="intermediate, 320, is not a multiple of group, 128"):
        read_gguf(changed(tmp_path / "m.gguf", change, shape=shape))


def test_an_embedding_keeps_its_bytes_where_its_number_tells_its_type(tmp_path: Path) -> None:
    path, _, _ = published(tmp_path / "m.gguf", "PTQ1_0")
    write_gguf(tmp_path / "copy.gguf", read_gguf(path), "pq2_0")
    copy, source = read_gguf(tmp_path / "copy.gguf").container, read_gguf(path).container
    name = "token_embd.weight"
    assert copy.tensors[name].type == types.PTQ1_0
    assert np.array_equal(copy.bytes_of(copy.tensors[name]), source.bytes_of(source.tensors[name]))


@pytest.mark.parametrize("type", ["Q2_0", "Q2_0 of 128", "TQ2_0"])
def test_a_model_that_was_only_rounded_is_doubted(tmp_path: Path, type: str) -> None:
    """As tools do it: a weight becomes the nearest of -d, 0 and d, where d is the greatest of its block."""
    id, block, writer = by_hand.WRITERS[type]

    def change(metadata: dict, tensors: dict) -> None:
        for name in filter(is_ternary, tensors):
            m, k = tensors[name][0]
            weights = np.random.default_rng(1).standard_normal((m, k // block, block))
            scales = np.abs(weights).max(axis=2).astype(np.float16).astype(np.float64)
            codes = np.rint(weights / scales[:, :, None]).astype(np.int8).reshape(m, k)
            tensors[name] = ((m, k), id, writer(codes, scales))

    path = changed(tmp_path / "m.gguf", change)
    said = doubts.warning(read_gguf(path))
    assert said is not None and re.search(r"(7[5-9]|8\d)% of the weights of blk\.1\.ffn_gate\.weight are 0", said)
    assert info.describe(path)["warning"] == said


@pytest.mark.parametrize("type", PUBLISHED)
def test_ternary_models_are_not_doubted(tmp_path: Path, type: str) -> None:
    assert doubts.warning(read_gguf(published(tmp_path / "m.gguf", type)[0])) is None


@pytest.mark.parametrize("type", ["TQ1_0", "TQ2_0"])
def test_the_gguf_package_makes_the_same_blocks(type: str) -> None:
    """Its quantiser finds the scales again, and what it dequantises are the weights."""
    rng, (_, block, writer) = np.random.default_rng(2), by_hand.WRITERS[type]
    codes = rng.integers(-1, 2, (5, 3 * block)).astype(np.int8)
    scales = (rng.integers(64, 192, (5, 3)) / 2048).astype(np.float32)
    values = codes * scales.repeat(block, axis=1)
    kind = gguf.GGMLQuantizationType[type]
    theirs = gguf.quants.quantize(values, kind)
    got, got_scales = getattr(blocks, f"unpack_{type.lower()}")(theirs.reshape(-1), *codes.shape)
    assert np.array_equal(got, codes) and np.array_equal(got_scales, scales)
    ours = np.frombuffer(writer(codes, scales), np.uint8).reshape(theirs.shape)
    assert np.array_equal(gguf.quants.dequantize(ours, kind), values)
