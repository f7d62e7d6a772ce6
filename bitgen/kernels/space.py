"""What may be generated and what is worth trying. Pure: no files, no compiler, no clock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import product

from bitgen.errors import UnsupportedError
from bitgen.kernels.formats import FORMATS, Geometry
from bitgen.spec import GemmShape, KernelSpec, Layout, MatrixPlan, Op, Tile, round_up
from bitgen.targets import TARGETS, fallbacks


def int16_columns(columns: int, low: int, high: int) -> int:
    """Columns that one int16 lane may sum over when it gains a term in [low, high] every `columns` columns."""
    return columns * min((1 << 15) // -low, ((1 << 15) - 1) // high)


# A lane of maddubs, and of each of the two accumulators that vmlal fills by halves, gains a product of a code
# 0..2 and an activation -128..127 every 16 columns: -32768 or +32512 after 2048 columns, just in range.
PRODUCT_COLUMNS = int16_columns(16, 2 * -128, 2 * 127)
# The largest part of a t5 byte that is multiplied so is 9 c2 + 3 c3 + c4, 0..26.
T5_COLUMNS = int16_columns(16, 26 * -128, 26 * 127)
# Of an i2_g step, whose 16 columns fill 4 bytes of a row, a lane of maddubs gains 8 products, one of vmlal 4.
GROUP_COLUMNS_MADDUBS = int16_columns(2, 2 * -128, 2 * 127)
GROUP_COLUMNS_VMLAL = int16_columns(4, 2 * -128, 2 * 127)
# An entry of a table of i1_s and i1_g is a sum of four |q|, and a lane, of 16 bits without a sign, a sum of entries.
BIT_COLUMNS = ((1 << 16) - 1) // 128 // 32 * 32
# An entry of a look-up table is a sum of two, three or four activations of either sign.
PAIR_COLUMNS = int16_columns(2, -2 * 128, 2 * 128)
TRIPLE_COLUMNS = int16_columns(3, -3 * 128, 3 * 128)
QUAD_COLUMNS = int16_columns(4, -4 * 128, 4 * 128)
# Where codes are multiplied in place (i2_s/sdot.c.j2), an int32 lane gains 4 * 32 * -128 every 64 columns.
MOST_COLUMNS = 1 << 22
# Bytes of weights that stay in the second-level cache while tokens pass: half of the smallest in use, 256 KiB.
L2_SHARE = 128 << 10
# AMX: rows, in whole squares of 32 and whole panels, and tokens whose sums, 640 KiB, stay in the second-level cache.
AMX_ROWS, AMX_TOKENS = 320, 512
# Groups of four columns that one pass looks up: their tables stay in the nearest caches, their entries fill a word.
LUT_GROUPS = 8
# Columns of such a pass: a group with a scale is whole passes. In a mixed kernel they divide the tokens among them.
PASS_COLUMNS = 4 * LUT_GROUPS
MIXED_COLUMNS = (128, 64, 256, 32)
# Rows that pass through one set of tables: the sums of 2560 rows take 480 KiB of the second-level cache. Of mixed
# kernels half of the rows have none.
LUT_ROWS, MIXED_LUT_ROWS = 2560, 4096
# Rows whose codes are placed together for look-ups: whole panels, of five rows too, and whole vectors of 16.
STRIP_ROWS = 80
# Rows of the micro-kernel that runs beside look-ups: four vectors of 16 sums.
MIXED_ROWS = 64
# A matrix with more rows is tried on some of its rows, in whole panels of every format.
MOST_TRIED_ROWS, TRIED_WEIGHTS, TRIED_ROWS = 1 << 16, 1 << 26, 960
# Rows for which it pays a thread to build the tables of its tokens.
TABLE_ROWS = 1280


@dataclass(frozen=True)
class Template:
    """One row per file templates/<format>/<isa>.c.j2: the tiles it takes and those worth trying, best guess first."""

    bm: tuple[int, ...]
    bk: tuple[int, ...]
    nr: tuple[int, ...] = (1,)
    prefetch: tuple[int, ...] = (0,)
    kc: int = 0  # columns of a cache block, so that nr tokens' fit the first-level cache; 0: K is not divided
    mr: int = 0  # most rows of the micro-kernel; 0: their number is the template's own
    unit: int = 0  # rows or tokens of one vector, where codes are unpacked once for all tokens; else 0
    l2: int = L2_SHARE  # bytes of a cache block of weights; 0: no loop has one
    mc: int = 0  # rows of a cache block; 0: as many as fill l2
    nc: int = 0  # tokens of a cache block; 0: all
    mixed: tuple[bool, ...] = (False,)  # whether half of the rows are multiplied while the others are looked up
    lanes: int = 0  # tokens that a look-up serves; 0: there are no look-ups
    int16_columns: int = 0  # most columns that an int16 partial sum may span; 0: sums are int32
    any_layout: bool = False  # bm and bk are a choice, not a limit

    @property
    def lut_groups(self) -> tuple[int, ...]:
        """Groups of four columns that one pass may look up."""
        return (LUT_GROUPS, 0) if self.lanes else (0,)


_AHEAD = (2048, 1024, 4096, 512, 0)
_FAR = (4096, 2048, 8192, 1024, 0)  # with scale groups: every cache line is asked for

TEMPLATES: dict[tuple[str, str], Template] = {
    ("i1_s", "avx2"): Template((64, 128, 32), (256, 128), nr=(6, 8, 4), prefetch=_FAR, int16_columns=BIT_COLUMNS),
    ("i1_s", "neon"): Template((64, 16), (256, 128), nr=(4, 2), prefetch=_FAR, int16_columns=BIT_COLUMNS),
    ("i1_s", "scalar"): Template((64, 16, 32), (256, 128), nr=(4,), int16_columns=BIT_COLUMNS),
    ("i1_g", "avx2"): Template((64, 128, 32), (128, 64), nr=(6, 8, 4), prefetch=_FAR, int16_columns=BIT_COLUMNS),
    ("i1_g", "neon"): Template((64, 16), (128, 64), nr=(4, 2), prefetch=_FAR, int16_columns=BIT_COLUMNS),
    ("i1_g", "scalar"): Template((64, 16, 32), (128, 64), nr=(4,), int16_columns=BIT_COLUMNS),
    ("i2_s", "amx"): Template(
        (4, 8, 2), (256,), prefetch=(4096, 2048, 1024, 512, 0), kc=512, mc=AMX_ROWS, nc=AMX_TOKENS
    ),
    ("i2_s", "avx512vnni"): Template(
        (4, 8, 2), (256,), nr=(8, 6, 4, 12), mr=2, prefetch=_AHEAD, kc=3072, mixed=(True, False), lanes=32
    ),
    ("i2_s", "avxvnni"): Template((4, 8, 2, 1), (128,), nr=(10, 12, 8, 6), mr=1, prefetch=_AHEAD, kc=2560, lanes=32),
    ("i2_s", "avx2"): Template(
        (4, 8, 2, 1), (128,), nr=(8, 6, 10, 4), mr=1, prefetch=_AHEAD, kc=3072, int16_columns=PRODUCT_COLUMNS, lanes=32
    ),
    ("i2_s", "i8mm"): Template((4, 2, 1), (64,), nr=(12, 8, 4), mr=8, unit=2, prefetch=_AHEAD, kc=2048),
    ("i2_s", "dotprod"): Template((4, 2, 1), (64,), nr=(12, 8, 4), mr=8, unit=4, prefetch=_AHEAD, kc=2048),
    ("i2_s", "neon"): Template(
        (4, 2, 1), (64,), nr=(4, 2), mr=2, prefetch=_AHEAD, kc=4096, int16_columns=PRODUCT_COLUMNS, lanes=16
    ),
    ("i2_s", "scalar"): Template((4, 1, 8), (128, 64), l2=0, any_layout=True),
    ("i2_g", "avx512vnni"): Template((64,), (128, 64), nr=(4,), prefetch=_FAR, mixed=(True, False), lanes=32),
    ("i2_g", "avxvnni"): Template((64, 32), (128, 64), nr=(6, 5, 4), prefetch=_FAR, lanes=32),
    ("i2_g", "avx2"): Template(
        (64, 16), (128, 64), nr=(6, 4, 2), prefetch=_FAR, int16_columns=GROUP_COLUMNS_MADDUBS, lanes=32
    ),
    ("i2_g", "i8mm"): Template((16, 8, 4), (128, 64), nr=(8, 4), mr=8, unit=2, prefetch=_FAR, kc=2048),
    ("i2_g", "dotprod"): Template((16, 8, 4), (128, 64), nr=(8, 4), prefetch=_FAR),
    ("i2_g", "neon"): Template(
        (16, 8, 4), (128, 64), nr=(4, 2), prefetch=_FAR, int16_columns=GROUP_COLUMNS_VMLAL, lanes=16
    ),
    ("i2_g", "scalar"): Template((16, 4, 64), (128, 64), nr=(4,)),
    ("t5_g", "avx512vbmi"): Template((80,), (128, 64), nr=(3, 4), prefetch=_FAR),
    ("t5_g", "avx512vnni"): Template((80,), (128, 64), nr=(3, 4), prefetch=_FAR),
    ("t5_g", "avxvnni"): Template((80,), (128, 64), nr=(6, 5, 4), prefetch=_FAR),
    ("t5_g", "avx2"): Template((80, 40), (128, 64), nr=(6, 4, 2), prefetch=_FAR, int16_columns=GROUP_COLUMNS_MADDUBS),
    ("t5_g", "dotprod"): Template((80, 20), (128, 64), nr=(8, 4), prefetch=_FAR),
    ("t5_g", "neon"): Template((80, 20), (128, 64), nr=(4, 2), prefetch=_FAR, int16_columns=GROUP_COLUMNS_VMLAL),
    ("t5_g", "scalar"): Template((20, 80), (128, 64), nr=(4,)),
    ("t5", "amx"): Template((5,), (256,), prefetch=_AHEAD, kc=512, mc=AMX_ROWS, nc=AMX_TOKENS),
    ("t5", "avx512vbmi"): Template((5,), (256,), nr=(4, 2), mr=5, prefetch=_AHEAD, mixed=(True, False), lanes=32),
    ("t5", "avx512vnni"): Template((5,), (256,), nr=(4, 2), mr=5, prefetch=_AHEAD, mixed=(True, False), lanes=32),
    ("t5", "avx2"): Template((5,), (128,), nr=(2, 1), mr=5, prefetch=_AHEAD, int16_columns=T5_COLUMNS, lanes=32),
    ("t5", "i8mm"): Template((5,), (64,), nr=(8, 4), mr=10, unit=2, prefetch=_AHEAD, kc=2048),
    ("t5", "dotprod"): Template((5,), (64,), nr=(4,), mr=20, unit=4, prefetch=_AHEAD, kc=2048),
    ("t5", "neon"): Template(
        (5,), (64,), nr=(2, 1), mr=5, prefetch=_AHEAD, kc=4096, int16_columns=T5_COLUMNS, lanes=16
    ),
    ("t5", "scalar"): Template((5, 10), (128, 64), l2=0, any_layout=True),
    ("tl1", "neon"): Template((64, 32, 128, 256), (128, 64), l2=0, int16_columns=PAIR_COLUMNS, any_layout=True),
    ("tl1", "scalar"): Template((64, 32, 128), (128, 64), l2=0, any_layout=True),
    ("tl2", "avx2"): Template((64, 32, 128, 256), (192, 96), l2=0, int16_columns=TRIPLE_COLUMNS, any_layout=True),
    ("tl2", "scalar"): Template((64, 32, 128), (192, 96), l2=0, any_layout=True),
}


def template_isa(format: str, isa: str) -> str:
    """The level whose template serves a format on `isa`: its own or the nearest below it."""
    return next(level for level in fallbacks(isa) if (format, level) in TEMPLATES)


def legal(spec: KernelSpec) -> str | None:
    """Why a kernel cannot be generated, or None when it can."""
    layout, tile, shape = spec.layout, spec.tile, spec.shape
    if layout.format not in FORMATS:
        return f"unknown format {layout.format!r}; known: {', '.join(FORMATS)}"
    if spec.isa not in TARGETS:
        return f"unknown ISA {spec.isa!r}; known: {', '.join(TARGETS)}"
    if shape.m < 1 or shape.k < 1:
        return f"an empty matrix: {shape.m} x {shape.k}"
    if shape.k > MOST_COLUMNS:
        return f"int32 sums over {shape.k} columns may overflow; at most {MOST_COLUMNS}"
    reason = FORMATS[layout.format].illegal(layout) or _weights_reason(shape, layout)
    if reason:
        return reason
    geometry = FORMATS[layout.format].geometry(shape, layout)
    if max(geometry.m_pad, geometry.weight_bytes, geometry.operand_bytes) >= 1 << 31:
        return f"{shape.m} x {shape.k} exceeds 2 GiB of packed weights"
    return _layout_reason(spec) or _tile_reason(spec.op, tile, layout, template_row(spec), geometry)


def _weights_reason(shape: GemmShape, layout: Layout) -> str | None:
    if FORMATS[layout.format].binary and not shape.binary:
        return f"{layout.format} is not for a matrix that holds 0: its weights are -1 and +1"
    if FORMATS[layout.format].grouped != bool(shape.group):
        return f"{layout.format} is not for a matrix with {'groups of columns' if shape.group else 'one scale'}"
    if shape.group and (layout.bk != shape.group or shape.k % shape.group):
        return (
            f"{layout.format}: bk must be the group of {shape.group} columns, not {layout.bk}, and divide K={shape.k}"
        )
    return None


def trial_shape(shape: GemmShape) -> GemmShape:
    """The matrix on whose kernels those of a matrix are tried: itself, or its first rows where it has very many.

    Only the head has so many. Kernels walk panel by panel, whatever their number, and a fraction of its rows exceeds
    every cache; all of them, with the oracle's copies, would take gigabytes.
    """
    if shape.m <= MOST_TRIED_ROWS:
        return shape
    return replace(shape, m=max(TRIED_WEIGHTS // shape.k // TRIED_ROWS, 1) * TRIED_ROWS)


def template_row(spec: KernelSpec) -> Template:
    """The row of the template that serves a spec."""
    return TEMPLATES[spec.layout.format, template_isa(spec.layout.format, spec.isa)]


@dataclass(frozen=True)
class Blocks:
    """Rows, columns and tokens that the loops of a kernel take at a time, named as in BLIS. 0: no such loop.

    A micro-kernel multiplies mr rows by nr tokens over kc columns, its sums in registers, the tokens' activations in
    the first-level cache. The macro-kernel around it takes mc rows by nc tokens, the rows' weights in the second.
    """

    mr: int  # rows of the micro-kernel: with nr, as many sums as registers hold
    nr: int  # tokens of the micro-kernel
    unit: int  # rows or tokens of one vector of unpacked codes: what an instruction multiplies at once
    kc: int  # columns of a cache block: nr tokens' activations fit the first-level cache
    mc: int  # rows of a cache block: their weights over kc columns fill the share of the second-level cache
    nc: int  # tokens of a cache block: their sums with mc rows fit there too (AMX; elsewhere sums go to y)
    lut_mc: int  # rows of one set of look-up tables: their sums fit the second-level cache
    strip_rows: int  # rows whose codes are placed together for look-ups
    mixed_rows: int  # rows of the micro-kernel beside look-ups
    table_rows: int  # rows for which it pays a thread to build tables: with fewer, threads divide tokens


def blocks(spec: KernelSpec) -> Blocks:
    """The sizes of a legal kernel's blocks: what its template spells and the cost model assumes."""
    template, tile, bm = template_row(spec), spec.tile, spec.layout.bm
    geometry = FORMATS[spec.layout.format].geometry(spec.shape, spec.layout)
    kc, mr = tile.kc or geometry.k_pad, template.mr if template.unit else min(template.mr, bm)
    most = MIXED_LUT_ROWS if tile.mixed else LUT_ROWS
    return Blocks(
        mr=mr,
        nr=tile.nr,
        unit=template.unit,
        kc=kc,
        mc=template.mc or _cached_rows(spec, template, mr, kc),
        nc=template.nc,
        lut_mc=min(geometry.m_pad, most // bm * bm) if template.lanes else 0,
        strip_rows=STRIP_ROWS if template.lanes and not spec.shape.group else 0,
        mixed_rows=MIXED_ROWS if template.lanes else 0,
        table_rows=TABLE_ROWS if template.lanes else 0,
    )


def _cached_rows(spec: KernelSpec, template: Template, mr: int, kc: int) -> int:
    """Whole micro-kernels of unpacked codes, or whole panels, that fill the share of the cache over kc columns.

    At least one. Unpacked codes are bytes; packed weights count as two bits, or one where they are binary, with
    a float16 scale for each group.
    """
    if not template.l2:
        return 0
    layout = spec.layout
    scales = 2 * layout.bm * (kc // layout.bk) if spec.shape.group else 0
    rows, per_byte = max(mr, layout.bm), 8 if FORMATS[layout.format].binary else 4
    step, nbytes = (rows, rows * kc) if template.unit else (layout.bm, layout.bm * kc // per_byte + scales)
    return max(template.l2 // nbytes, 1) * step


def _layout_reason(spec: KernelSpec) -> str | None:
    layout, template = spec.layout, template_row(spec)
    if not template.any_layout:
        for axis, value, allowed in (("bm", layout.bm, template.bm), ("bk", layout.bk, template.bk)):
            if value not in allowed and not (axis == "bk" and spec.shape.group):  # the group, whatever it is
                return f"{layout.format} on {spec.isa}: {axis} must be one of {sorted(allowed)}, not {value}"
    most = template.int16_columns
    if most and layout.bk > most:
        return f"{layout.format}: int16 sums over bk={layout.bk} columns may overflow; at most {most}"
    return None


def _tile_reason(op: Op, tile: Tile, layout: Layout, template: Template, geometry: Geometry) -> str | None:
    grouped = FORMATS[layout.format].grouped
    if op == "gemv":
        if (tile.nr, tile.kc, tile.lut_groups, tile.mixed) != (1, 0, 0, False):
            return "a gemv tile has only a prefetch distance"
        if tile.prefetch < 0 or (tile.prefetch and not any(template.prefetch)):
            return f"prefetch must be 0 here, not {tile.prefetch}"
        return None
    if tile.prefetch:
        return "a gemm tile has no prefetch distance"
    if tile.nr not in template.nr:
        return f"nr must be one of {sorted(template.nr)}, not {tile.nr}"
    if tile.lut_groups not in template.lut_groups:
        return f"lut_groups must be one of {sorted(template.lut_groups)}, not {tile.lut_groups}"
    if tile.lut_groups and grouped and layout.bk % PASS_COLUMNS:
        return f"look-ups need groups of a multiple of {PASS_COLUMNS} columns, not {layout.bk}"
    if tile.mixed and grouped and layout.bk not in MIXED_COLUMNS:
        return f"mixed needs groups of {', '.join(map(str, sorted(MIXED_COLUMNS)))} columns, not {layout.bk}"
    if tile.mixed and not (tile.lut_groups and any(template.mixed)):
        return "mixed goes with look-ups, where the template has it"
    if tile.mixed and geometry.m_pad < 2 * MIXED_ROWS:
        return f"mixed needs {2 * MIXED_ROWS} rows, not {geometry.m_pad}"
    if tile.kc and (not template.kc or tile.kc % layout.bk or not 0 < tile.kc < geometry.k_pad):
        return f"kc must be 0 or, where the template divides K, a multiple of bk={layout.bk} below K, not {tile.kc}"
    return None


def candidate_layouts(shape: GemmShape, isa: str, thorough: bool = False) -> list[Layout]:
    """Layouts worth trying for a matrix, best guess first; formats that would fall back to scalar C only there."""
    found = []
    for name in FORMATS:
        level = template_isa(name, isa)
        if level == "scalar" != isa:
            continue
        template = TEMPLATES[name, level]
        keep = None if thorough else 2
        blocks = (shape.group,) if FORMATS[name].grouped else template.bk[:keep]
        found += [Layout(name, bm, bk) for bm, bk in product(template.bm[:keep], blocks)]
    return [x for x in found if legal(KernelSpec("gemv", shape, isa, x, Tile())) is None]


def candidate_tiles(op: Op, shape: GemmShape, isa: str, layout: Layout, thorough: bool = False) -> list[Tile]:
    """Tiles worth trying for a matrix in a layout, best guess first, all legal."""
    template = TEMPLATES[layout.format, template_isa(layout.format, isa)]
    keep = None if thorough else 2
    if op == "gemv":
        tiles = [Tile(prefetch=ahead) for ahead in template.prefetch[:keep]]
    else:
        k_pad = FORMATS[layout.format].geometry(shape, layout).k_pad
        blocks = _cache_blocks(k_pad, layout.bk, template)
        tiles = []
        for groups in template.lut_groups[:keep]:  # with a look-up, nr and kc serve but a rest of few tokens
            products = [(template.nr[0], blocks[0])] if groups else product(template.nr[:keep], blocks)
            mixed = template.mixed if groups else (False,)
            tiles += [Tile(nr, kc, lut_groups=groups, mixed=m) for m, (nr, kc) in product(mixed, products)]
    return [t for t in tiles if legal(KernelSpec(op, shape, isa, layout, t)) is None]


def _cache_blocks(k_pad: int, bk: int, template: Template) -> list[int]:
    """Even divisions of K into cache blocks: as few as the template likes, then twice as many; 0 is undivided."""
    if not template.kc:
        return [0]
    few = -(-k_pad // template.kc)
    sizes = (round_up(-(-k_pad // count), bk) for count in (few, 2 * few))
    return list(dict.fromkeys(0 if kc >= k_pad else kc for kc in sizes))


def default_plan(shape: GemmShape, isa: str, layouts: Iterable[Layout] | None = None) -> MatrixPlan:
    """A good decision without measurement: the first candidate of each kind. layouts: to choose among, best first."""
    for layout in candidate_layouts(shape, isa) if layouts is None else layouts:
        gemv = candidate_tiles("gemv", shape, isa, layout)
        gemm = candidate_tiles("gemm", shape, isa, layout)
        if gemv and gemm:
            return MatrixPlan(layout, gemv[0], gemm[0])
    raise UnsupportedError(f"no kernel for a {shape.m} x {shape.k} matrix on {isa!r}")
