"""What is legal and what is tried: bounds of the partial sums, candidates, defaults."""

from __future__ import annotations

import dataclasses

import pytest

from bitgen.checkpoints import presets
from bitgen.kernels import render, space
from bitgen.kernels.formats import FORMATS
from bitgen.kernels.layout import round_up
from bitgen.spec import GemmShape, KernelSpec, Layout, Tile
from bitgen.targets import TARGETS

SHAPES = sorted(
    {s for name in presets.names() for s in presets.load(name).all_matrices.values()}, key=lambda s: (s.m, s.k)
)
MIXED = Tile(nr=8, lut_groups=8, mixed=True)
GOOD = KernelSpec("gemm", GemmShape(2560, 2560), "avx2", Layout("i2_s", 4, 128), Tile(nr=8, kc=1280))


def test_bounds_of_int16_sums() -> None:
    """The largest count is in range and the next is not, for every activation -128..127."""
    assert space.PRODUCT_COLUMNS == 2048
    products = space.PRODUCT_COLUMNS // 16
    assert products * 2 * -128 == -(1 << 15) and products * 2 * 127 < 1 << 15
    assert space.T5_COLUMNS == 144
    parts = space.T5_COLUMNS // 16
    assert parts * 26 * -128 >= -(1 << 15) and parts * 26 * 127 < 1 << 15 <= (parts + 1) * 26 * 128
    assert space.PAIR_COLUMNS // 2 * 256 < 1 << 15 <= (space.PAIR_COLUMNS // 2 + 1) * 256
    assert space.TRIPLE_COLUMNS // 3 * 384 < 1 << 15 <= (space.TRIPLE_COLUMNS // 3 + 1) * 384
    assert space.QUAD_COLUMNS // 4 * 512 < 1 << 15 <= (space.QUAD_COLUMNS // 4 + 1) * 512


@pytest.mark.parametrize("isa", TARGETS)
@pytest.mark.parametrize("shape", [*SHAPES, GemmShape(1, 1)], ids=str)
def test_every_candidate_and_default_is_legal(isa: str, shape: GemmShape) -> None:
    plan = space.default_plan(shape, isa)
    assert [space.legal(spec) for spec in plan.specs(shape, isa)] == [None, None]
    for thorough in (False, True):
        layouts = space.candidate_layouts(shape, isa, thorough)
        assert plan.layout in layouts and len(set(layouts)) == len(layouts)
        for layout in layouts:
            for op in ("gemv", "gemm"):
                tiles = space.candidate_tiles(op, shape, isa, layout, thorough)
                assert tiles and len(set(tiles)) == len(tiles)
                assert all(space.legal(KernelSpec(op, shape, isa, layout, t)) is None for t in tiles)


def test_thorough_tries_more() -> None:
    shape = GemmShape(2560, 6912)
    quick, thorough = (space.candidate_layouts(shape, "avx2", t) for t in (False, True))
    assert set(quick) < set(thorough)
    layout = quick[0]
    quick_tiles, all_tiles = (space.candidate_tiles("gemm", shape, "avx2", layout, t) for t in (False, True))
    assert set(quick_tiles) < set(all_tiles)


def test_formats_offered_by_level() -> None:
    """A format is offered where it has a template better than portable C; at the scalar level all are."""

    def by_level(shape: GemmShape) -> dict[str, set[str]]:
        return {isa: {layout.format for layout in space.candidate_layouts(shape, isa)} for isa in TARGETS}

    assert by_level(GemmShape(256, 960)) == {
        "amx": {"i2_s", "t5", "tl2"},
        "avx512vbmi": {"i2_s", "t5", "tl2"},
        "avx512vnni": {"i2_s", "t5", "tl2"},
        "avxvnni": {"i2_s", "t5", "tl2"},
        "avx2": {"i2_s", "t5", "tl2"},
        "i8mm": {"i2_s", "t5", "tl1"},
        "dotprod": {"i2_s", "t5", "tl1"},
        "neon": {"i2_s", "t5", "tl1"},
        "scalar": {"i2_s", "t5", "tl1", "tl2"},
    }
    assert by_level(GemmShape(256, 960, 64)) == {isa: {"i2_g", "t5_g"} for isa in TARGETS}


def test_binary_matrices_are_offered_formats_of_one_bit_too() -> None:
    for isa in TARGETS:
        for group, format in ((0, "i1_s"), (64, "i1_g")):
            ternary, binary = (space.candidate_layouts(GemmShape(256, 960, group, b), isa) for b in (False, True))
            assert {layout.format for layout in binary} - {layout.format for layout in ternary} == {format}
            assert set(ternary) < set(binary)


def test_the_default_is_of_two_bits_or_one() -> None:
    """Of ternary weights formats of fewer bits are chosen by measurement. Scales of groups have their own formats."""
    for isa in TARGETS:
        for shape in (*SHAPES, GemmShape(2560, 2560, binary=True)):
            bits, scales = 1 if shape.binary else 2, "g" if shape.group else "s"
            assert space.default_plan(shape, isa).layout.format == f"i{bits}_{scales}"


@pytest.mark.parametrize(("format", "isa"), space.TEMPLATES, ids=map("-".join, space.TEMPLATES))
def test_blocks_are_whole_and_fit_their_cache(format: str, isa: str) -> None:
    template = space.TEMPLATES[format, isa]
    for shape in (GemmShape(2560, 6912), GemmShape(1, 1), GemmShape(128256, 23040)):
        if FORMATS[format].grouped:
            shape = GemmShape(shape.m, round_up(shape.k, 128), 128)
        shape = dataclasses.replace(shape, binary=FORMATS[format].binary)
        for layout in (x for x in space.candidate_layouts(shape, isa, thorough=True) if x.format == format):
            for tile in space.candidate_tiles("gemm", shape, isa, layout, thorough=True):
                spec = KernelSpec("gemm", shape, isa, layout, tile)
                sizes, geometry = space.blocks(spec), FORMATS[format].geometry(shape, layout)
                assert (sizes.nr, sizes.kc) == (tile.nr, tile.kc or geometry.k_pad)
                assert (sizes.mc > 0) == (template.l2 > 0) and (sizes.lut_mc > 0) == (template.lanes > 0)
                assert sizes.mc % layout.bm == sizes.lut_mc % layout.bm == sizes.strip_rows % layout.bm == 0
                assert sizes.lut_mc <= min(geometry.m_pad, space.MIXED_LUT_ROWS if tile.mixed else space.LUT_ROWS)
                if sizes.mr:
                    assert sizes.mc % sizes.mr == max(sizes.mr, layout.bm) % min(sizes.mr, layout.bm) == 0
                if template.unit:
                    assert sizes.mr % template.unit == sizes.nr % template.unit == 0
                if not template.mc:
                    least, weights_per_byte = (sizes.mr, 1) if template.unit else (layout.bm, 8 if shape.binary else 4)
                    assert sizes.mc in (0, least) or sizes.mc * sizes.kc // weights_per_byte <= template.l2


def test_a_cache_block_takes_the_share_of_its_template(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = dataclasses.replace(GOOD, tile=Tile(nr=8))
    rows = space.blocks(spec).mc
    assert rows == space.L2_SHARE // (2560 // 4) // 4 * 4
    template = dataclasses.replace(space.TEMPLATES["i2_s", "avx2"], l2=2 * space.L2_SHARE)
    monkeypatch.setitem(space.TEMPLATES, ("i2_s", "avx2"), template)
    assert space.blocks(spec).mc == 2 * rows
    assert f"MC = {2 * rows}" in render.render_kernel(spec)


def test_the_good_one_is_legal() -> None:
    assert space.legal(GOOD) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"isa": "sse9"}, "unknown ISA"),
        ({"shape": GemmShape(0, 5)}, "empty"),
        ({"shape": GemmShape(1 << 30, 1 << 20)}, "2 GiB"),
        ({"shape": GemmShape(4, (1 << 22) + 1)}, "int32 sums over"),
        ({"layout": Layout("q4", 4, 128)}, "unknown format"),
        ({"layout": Layout("i2_s", 3, 128)}, "bm must be one of"),
        ({"layout": Layout("i2_s", 4, 64)}, "bk must be one of"),
        ({"layout": Layout("i2_s", 4, 30)}, "multiple of 4"),
        ({"shape": GemmShape(2560, 2560, 128)}, "i2_s is not for a matrix with groups"),
        ({"layout": Layout("i2_g", 8, 128)}, "i2_g is not for a matrix with one scale"),
        ({"layout": Layout("i1_s", 64, 128)}, "i1_s is not for a matrix that holds 0"),
        ({"shape": GemmShape(8, 512, 64), "layout": Layout("i2_g", 8, 128)}, "bk must be the group of 64 columns"),
        ({"shape": GemmShape(8, 500, 64), "layout": Layout("i2_g", 8, 64)}, "divide K=500"),
        ({"shape": GemmShape(8, 272, 272), "layout": Layout("i2_g", 16, 272)}, "may overflow; at most 256"),
        (
            {"shape": GemmShape(8, 480, 48), "layout": Layout("i2_g", 16, 48), "tile": Tile(nr=6, lut_groups=8)},
            "look-ups need groups of a multiple of 32 columns, not 48",
        ),
        (
            {
                "isa": "avx512vnni",
                "shape": GemmShape(128, 384, 96),
                "layout": Layout("i2_g", 64, 96),
                "tile": Tile(nr=4, lut_groups=8, mixed=True),
            },
            "mixed needs groups of 32, 64, 128, 256 columns, not 96",
        ),
        ({"tile": Tile(nr=8, kc=2560)}, "below K"),
        ({"tile": Tile(nr=8, kc=-128)}, "below K"),
        ({"isa": "scalar", "tile": Tile(kc=1280)}, "where the template divides K"),
        ({"tile": Tile(nr=8, kc=1000)}, "multiple of bk"),
        ({"tile": Tile(nr=99, kc=1280)}, "nr must be"),
        ({"tile": Tile(nr=8, kc=1280, prefetch=64)}, "no prefetch"),
        ({"tile": MIXED}, "where the template has it"),
        ({"isa": "avx512vnni", "layout": Layout("i2_s", 4, 256), "tile": Tile(nr=8, mixed=True)}, "goes with look-ups"),
        (
            {"isa": "avx512vnni", "layout": Layout("i2_s", 4, 256), "shape": GemmShape(9, 9), "tile": MIXED},
            "128 rows",
        ),
        ({"op": "gemv"}, "only a prefetch"),
        ({"op": "gemv", "tile": Tile(prefetch=-64)}, "prefetch must be"),
        ({"layout": Layout("tl2", 64, 288), "tile": Tile()}, "may overflow; at most 255"),
        ({"layout": Layout("t5", 4, 128)}, "bm must be a positive multiple of 5"),
        ({"layout": Layout("t5", 10, 128)}, "bm must be one of"),
        ({"layout": Layout("t5_g", 80, 128)}, "t5_g is not for a matrix with one scale"),
        ({"shape": GemmShape(80, 512, 64), "layout": Layout("t5_g", 60, 64)}, "bm must be one of"),
        ({"shape": GemmShape(80, 512, 64), "layout": Layout("t5_g", 8, 64)}, "bm must be a positive multiple of 5"),
        ({"shape": GemmShape(80, 512, 8), "layout": Layout("t5_g", 80, 8)}, "bk must be a positive multiple of 16"),
        ({"layout": Layout("tl1", 64, 256), "isa": "neon", "tile": Tile()}, "may overflow; at most 254"),
    ],
)
def test_reasons(change: dict[str, object], reason: str) -> None:
    assert reason in str(space.legal(dataclasses.replace(GOOD, **change)))
