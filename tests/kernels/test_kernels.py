"""Every template's kernels against the oracle, bit for bit: boundary shapes, every tile, extreme data, split panels."""

from __future__ import annotations

import functools
import signal
from collections.abc import Iterator

import kernel_lab
import numpy as np
import numpy.typing as npt
import pytest
from kernel_lab import Job, Run

from bitgen.checkpoints import presets
from bitgen.compile.clang import find_compiler
from bitgen.compile.library import host_isas
from bitgen.kernels import space
from bitgen.kernels.formats import FORMATS
from bitgen.spec import GemmShape, KernelSpec, Layout, Op, Tile, round_up
from bitgen.targets import TARGETS, platform_of
from bitgen.tune.bands import random_codes

TOKENS = (1, 2, 3, 5, 8, 17, 35)
EXTREMES = (127, -127, -128)
SANITIZERS = "address,undefined"
PRESET_KS = sorted({s.k for name in presets.names() for s in presets.load(name).matrices.values()})


def _layouts(format: str, isa: str) -> list[Layout]:
    template = space.TEMPLATES[format, isa]
    return [Layout(format, bm, bk) for bm in template.bm for bk in template.bk]


def _shape(layout: Layout, m: int, k: int) -> GemmShape:
    """m x k; a matrix with groups, which are whole, is some columns wider."""
    format = FORMATS[layout.format]
    group = layout.bk if format.grouped else 0
    return GemmShape(m, round_up(k, group) if group else k, group, format.binary)


def _spec(op: Op, isa: str, layout: Layout, m: int, k: int) -> KernelSpec:
    shape = _shape(layout, m, k)
    return KernelSpec(op, shape, isa, layout, space.candidate_tiles(op, shape, isa, layout)[0])


def _boundary(format: str, isa: str) -> Iterator[KernelSpec]:
    """M and K below, at and above the tile, with remainders, for the first layout; and every other layout once."""
    first, *others = _layouts(format, isa)
    bm, bk = first.bm, first.bk
    spans = {2048, 2049, 4096 + bk} if space.TEMPLATES[format, isa].int16_columns else set()
    shapes = [(1, 1), (bm, bk), (bm + 1, bk - 1), (max(bm - 1, 1), bk + 1), (2 * bm + 3, 3 * bk + bk // 2)]
    shapes += [(bm, k) for k in sorted(spans)]
    for op in ("gemv", "gemm"):
        yield from (_spec(op, isa, first, m, k) for m, k in shapes)
    for i, layout in enumerate(others):
        yield _spec("gemm" if i % 2 else "gemv", isa, layout, layout.bm + 1, 2 * layout.bk + 40)


def _tiles(format: str, isa: str) -> Iterator[KernelSpec]:
    """Every tile that the tuner may try, on one shape whose K takes several cache blocks."""
    layout = _layouts(format, isa)[0]
    shape = _shape(layout, 2 * layout.bm + 1, 2500)
    for op in ("gemv", "gemm"):
        for tile in space.candidate_tiles(op, shape, isa, layout, thorough=True):
            yield KernelSpec(op, shape, isa, layout, tile)


def _preset_ks(format: str, isa: str) -> Iterator[KernelSpec]:
    """Every K of every preset, divided among the levels of a format; decode and prefill in turn."""
    layout, levels = _layouts(format, isa)[0], [level for name, level in space.TEMPLATES if name == format]
    at, of = levels.index(isa), min(3, len(levels))
    for i, k in enumerate(PRESET_KS[at % of :: of]):
        yield _spec("gemm" if (i + at // of) % 2 else "gemv", isa, layout, 3 if layout.bm < 3 else layout.bm, k)


def _mixed(format: str, isa: str) -> Iterator[KernelSpec]:
    """Half of the rows multiplied beside look-ups: one block of them, an odd number of blocks, more than one part."""
    template, layout = space.TEMPLATES[format, isa], _layouts(format, isa)[0]
    tile = Tile(template.nr[0], lut_groups=template.lut_groups[0], mixed=True)
    if any(template.mixed):
        for m, k in ((130, 300), (450, 2500), (4200, 256)):
            yield KernelSpec("gemm", _shape(layout, m, k), isa, layout, tile)
        for bk in space.MIXED_COLUMNS if FORMATS[format].grouped else ():
            other = Layout(format, layout.bm, bk)
            yield KernelSpec("gemm", _shape(other, 200, 500), isa, other, tile)


def _specs(format: str, isa: str) -> list[KernelSpec]:
    found = [*_boundary(format, isa), *_tiles(format, isa), *_preset_ks(format, isa), *_mixed(format, isa)]
    if FORMATS[format].grouped:  # any group
        step = FORMATS[format].bk_multiple
        groups = [Layout(format, _layouts(format, isa)[0].bm, bk) for bk in (step, 2 * step, 3 * step, 96, 256)]
        found += [_spec(op, isa, layout, 9, 768) for op in ("gemv", "gemm") for layout in groups]
    if isa == "scalar":  # any layout: blocks of four columns, panels of odd height
        free = [Layout("i2_s", 3, 20), Layout("i2_s", 1, 4)] if format == "i2_s" else []
        found += [_spec(op, isa, layout, 7, 50) for op in ("gemv", "gemm") for layout in free]
    return list(dict.fromkeys(found))


def _job(spec: KernelSpec) -> Job:
    """Random weights and activations, then rows of all +1 and all -1 against every extreme activation."""
    shape = spec.shape
    rng = np.random.default_rng([shape.m, shape.k])
    codes = random_codes(shape, rng)
    codes[1::7], codes[-1], codes[0] = 1, -1, 1  # in this order: a matrix of one row is all +1
    q = rng.integers(-128, 128, (TOKENS[-1], shape.k), dtype=np.int8)
    worst = np.repeat(np.resize(np.array(EXTREMES, np.int8), 18)[:, None], shape.k, axis=1)  # enough for look-up
    if spec.op == "gemv":
        tokens = [q[:1], q[1:2], *(row[None] for row in worst[:3])]
    else:
        tokens = [*(q[:n] for n in TOKENS), worst[:3], worst]
    if not shape.group:
        return Job(spec, codes, tuple(Run(t, splits=1 + i % 3) for i, t in enumerate(tokens)))
    scales, *steps = (_floats(rng, len(a), shape.k // shape.group) for a in (codes, *tokens))
    runs = tuple(Run(t, 1 + i % 3, s) for i, (t, s) in enumerate(zip(tokens, steps, strict=True)))
    if shape.binary:
        scales[1::5] = 0  # of groups of zeros
        codes[1::5] = 0
    return Job(spec, codes, runs, scales)


def _floats(rng: np.random.Generator, rows: int, groups: int) -> npt.NDArray[np.float32]:
    """Float16 numbers of every size, 0 and the subnormal ones too."""
    return rng.integers(0, 0x7C00, (rows, groups), np.uint16).view(np.float16).astype(np.float32)


@functools.cache
def _answers(format: str, isa: str) -> dict[KernelSpec, list[npt.NDArray[np.int32]]]:
    jobs = [_job(spec) for spec in _specs(format, isa)]
    return {job.spec: y for job, y in zip(jobs, kernel_lab.run(isa, jobs), strict=True)}


@pytest.mark.parametrize(
    ("format", "isa"),
    [
        pytest.param(format, isa, marks=[pytest.mark.qemu] * (TARGETS[isa].arch == "arm64"), id=f"{format}-{isa}")
        for format, isa in space.TEMPLATES
    ],
)
def test_kernels_equal_the_oracle(format: str, isa: str) -> None:
    try:
        answers = _answers(format, isa)
    except kernel_lab.Unavailable as e:
        pytest.skip(str(e))
    wrong = []
    for spec, answer in answers.items():
        job = _job(spec)
        for each, y in zip(job.runs, answer, strict=True):
            right = np.array_equal(y[:, : spec.shape.m], job.oracle(each))
            if not right or y[:, spec.shape.m :].any():
                wrong.append(f"{spec.symbol} n={len(each.q)} splits={each.splits}")
    assert not wrong, "\n".join(wrong)
    assert len(answers) >= 20


@pytest.mark.parametrize(
    ("format", "isa"),
    [
        pytest.param(format, isa, marks=[pytest.mark.qemu] * (TARGETS[isa].arch == "arm64"), id=f"{format}-{isa}")
        for format, isa in space.TEMPLATES
        if FORMATS[format].grouped
    ],
)
def test_rows_come_out_as_they_were_packed(format: str, isa: str) -> None:
    """Scale times code, exactly: of every row, with scales of every size."""
    jobs = [_job(spec) for spec in _specs(format, isa)]
    try:
        rows = kernel_lab.unpacked(isa, jobs)
    except kernel_lab.Unavailable as e:
        pytest.skip(str(e))
    for job, found in zip(jobs, rows, strict=True):
        assert job.scales is not None
        assert np.array_equal(found, job.codes * np.repeat(job.scales, job.spec.shape.group, axis=1)), job.spec.symbol


def _kinds(isa: str) -> list[KernelSpec]:
    """For each format that this level has a template for: decode, and prefill with tables of sums and without."""
    found = []
    for format in (format for format, level in space.TEMPLATES if level == isa):
        layout = _layouts(format, isa)[0]
        shape = _shape(layout, 2 * layout.bm + 130, 2 * layout.bk + 40)
        for op in ("gemv", "gemm"):
            tiles = space.candidate_tiles(op, shape, isa, layout, thorough=True)
            kinds = {(tile.lut_groups > 0, tile.mixed): tile for tile in tiles}
            found += [KernelSpec(op, shape, isa, layout, tile) for tile in kinds.values()]
    return found


@pytest.mark.parametrize("isa", host_isas())
def test_any_bytes_are_harmless_weights(isa: str) -> None:
    """Codes that no packer writes index no table beyond its end, and overflow nothing: files are not trusted."""
    if find_compiler(platform_of()).zig:
        pytest.skip("zig has no sanitizers' runtime; install clang")
    specs = _kinds(isa)
    assert kernel_lab.run_any_weights(kernel_lab.program(isa, tuple(specs), sanitize=SANITIZERS), specs, 67) == ""


@pytest.mark.qemu
@pytest.mark.parametrize(("isa", "cpu"), [("dotprod", "cortex-a53"), ("dotprod", "a64fx"), ("i8mm", "cortex-a76")])
def test_a_cpu_without_the_level_traps(isa: str, cpu: str) -> None:
    """So what a level's kernels pass on such a CPU, they pass with instructions that it has."""
    job = _job(_spec("gemm", isa, Layout("i2_s", 4, 64), 8, 64))
    try:
        *emulator, _, _, program = kernel_lab.command(isa, (job.spec,))
    except kernel_lab.Unavailable as e:
        pytest.skip(str(e))
    if not emulator:
        pytest.skip("this CPU has the level itself")
    with pytest.raises(AssertionError, match=rf"failed \({-signal.SIGILL}\)"):
        kernel_lab.answers([*emulator, "-cpu", cpu, program], isa, [job], (job.spec,))


def test_a_level_without_a_template_runs_a_simpler_one() -> None:
    """TL1 has none for AVX2: the scalar template, compiled with AVX2's flags, serves there."""
    job = _job(_spec("gemm", "avx2", Layout("tl1", 32, 24), 33, 100))
    try:
        (answer,) = kernel_lab.run("avx2", [job])
    except kernel_lab.Unavailable as e:
        pytest.skip(str(e))
    for each, y in zip(job.runs, answer, strict=True):
        assert np.array_equal(y[:, :33], job.oracle(each))
