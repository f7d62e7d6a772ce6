"""What may be generated and what is worth trying. Pure: no files, no compiler, no clock."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from bitgen.errors import UnsupportedError
from bitgen.kernels.formats import FORMATS, Geometry
from bitgen.kernels.layout import round_up
from bitgen.spec import GemmShape, KernelSpec, Layout, MatrixPlan, Op, Tile
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
# An entry of a look-up table is a sum of two, three or four activations of either sign.
PAIR_COLUMNS = int16_columns(2, -2 * 128, 2 * 128)
TRIPLE_COLUMNS = int16_columns(3, -3 * 128, 3 * 128)
QUAD_COLUMNS = int16_columns(4, -4 * 128, 4 * 128)
# Where codes are multiplied in place (i2_s/sdot.c.j2), an int32 lane gains 4 * 32 * -128 every 64 columns.
MOST_COLUMNS = 1 << 22
# Rows that are placed together for look-ups (i2_s/lookup.c.j2), and multiplied together beside them (mixed.c.j2).
STRIP_ROWS, MIXED_ROWS = 80, 64


@dataclass(frozen=True)
class Template:
    """One row per file templates/<format>/<isa>.c.j2: the tiles it takes and those worth trying, best guess first."""

    bm: tuple[int, ...]
    bk: tuple[int, ...]
    nr: tuple[int, ...] = (1,)
    prefetch: tuple[int, ...] = (0,)
    kc: int = 0  # columns of a cache block, so that nr tokens' fit the first-level cache; 0: K is not divided
    groups: tuple[int, ...] = (0,)  # of four columns, looked up in one pass (gemm)
    mixed: tuple[bool, ...] = (False,)  # whether half of the rows are multiplied while the others are looked up
    lanes: int = 0  # tokens that a look-up serves; 0: there is none
    int16_columns: int = 0  # most columns that an int16 partial sum may span; 0: sums are int32
    any_layout: bool = False  # bm and bk are a choice, not a limit


_AHEAD = (2048, 1024, 4096, 512, 0)

TEMPLATES: dict[tuple[str, str], Template] = {
    ("i2_s", "amx"): Template((4, 8, 2), (256,), prefetch=(4096, 2048, 1024, 512, 0), kc=512),
    ("i2_s", "avx512vnni"): Template(
        (4, 8, 2), (256,), nr=(8, 6, 4, 12), prefetch=_AHEAD, kc=3072, groups=(8, 0), mixed=(True, False), lanes=32
    ),
    ("i2_s", "avxvnni"): Template(
        (4, 8, 2, 1), (128,), nr=(10, 12, 8, 6), prefetch=_AHEAD, kc=2560, groups=(8, 0), lanes=32
    ),
    ("i2_s", "avx2"): Template(
        (4, 8, 2, 1),
        (128,),
        nr=(8, 6, 10, 4),
        prefetch=_AHEAD,
        kc=3072,
        int16_columns=PRODUCT_COLUMNS,
        groups=(8, 0),
        lanes=32,
    ),
    ("i2_s", "i8mm"): Template((4, 2, 1), (64,), nr=(12, 8, 4), prefetch=_AHEAD, kc=2048),
    ("i2_s", "dotprod"): Template((4, 2, 1), (64,), nr=(12, 8, 4), prefetch=_AHEAD, kc=2048),
    ("i2_s", "neon"): Template(
        (4, 2, 1),
        (64,),
        nr=(4, 2),
        prefetch=_AHEAD,
        kc=4096,
        int16_columns=PRODUCT_COLUMNS,
        groups=(8, 0),
        lanes=16,
    ),
    ("i2_s", "scalar"): Template((4, 1, 8), (128, 64), any_layout=True),
    ("i2_g", "avx512vnni"): Template((64,), (128, 64), nr=(4,), prefetch=_AHEAD),
    ("i2_g", "avxvnni"): Template((64, 32), (128, 64), nr=(6, 5, 4), prefetch=_AHEAD),
    ("i2_g", "avx2"): Template((64, 16), (128, 64), nr=(6, 4, 2), prefetch=_AHEAD, int16_columns=GROUP_COLUMNS_MADDUBS),
    ("i2_g", "dotprod"): Template((16, 8, 4), (128, 64), nr=(8, 4), prefetch=_AHEAD),
    ("i2_g", "neon"): Template((16, 8, 4), (128, 64), nr=(4, 2), prefetch=_AHEAD, int16_columns=GROUP_COLUMNS_VMLAL),
    ("i2_g", "scalar"): Template((16, 4, 64), (128, 64), nr=(4,)),
    ("t5", "amx"): Template((5,), (256,), prefetch=_AHEAD, kc=512),
    ("t5", "avx512vbmi"): Template(
        (5,), (256,), nr=(4, 2), prefetch=_AHEAD, groups=(8, 0), mixed=(True, False), lanes=32
    ),
    ("t5", "avx512vnni"): Template(
        (5,), (256,), nr=(4, 2), prefetch=_AHEAD, groups=(8, 0), mixed=(True, False), lanes=32
    ),
    ("t5", "avx2"): Template(
        (5,),
        (128,),
        nr=(2, 1),
        prefetch=_AHEAD,
        int16_columns=T5_COLUMNS,
        groups=(8, 0),
        lanes=32,
    ),
    ("t5", "i8mm"): Template((5,), (64,), nr=(8, 4), prefetch=_AHEAD, kc=2048),
    ("t5", "dotprod"): Template((5,), (64,), nr=(4,), prefetch=_AHEAD, kc=2048),
    ("t5", "neon"): Template(
        (5,),
        (64,),
        nr=(2, 1),
        prefetch=_AHEAD,
        kc=4096,
        int16_columns=T5_COLUMNS,
        groups=(8, 0),
        lanes=16,
    ),
    ("t5", "scalar"): Template((5, 10), (128, 64), any_layout=True),
    ("tl1", "neon"): Template((64, 32, 128, 256), (128, 64), int16_columns=PAIR_COLUMNS, any_layout=True),
    ("tl1", "scalar"): Template((64, 32, 128), (128, 64), any_layout=True),
    ("tl2", "avx2"): Template((64, 32, 128, 256), (192, 96), int16_columns=TRIPLE_COLUMNS, any_layout=True),
    ("tl2", "scalar"): Template((64, 32, 128), (192, 96), any_layout=True),
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
    reason = FORMATS[layout.format].illegal(layout) or _group_reason(shape, layout)
    if reason:
        return reason
    geometry = FORMATS[layout.format].geometry(shape, layout)
    if max(geometry.m_pad, geometry.weight_bytes, geometry.operand_bytes) >= 1 << 31:
        return f"{shape.m} x {shape.k} exceeds 2 GiB of packed weights"
    return _layout_reason(spec) or _tile_reason(spec.op, tile, layout, template_row(spec), geometry)


def _group_reason(shape: GemmShape, layout: Layout) -> str | None:
    if FORMATS[layout.format].grouped != bool(shape.group):
        return f"{layout.format} is not for a matrix with {'groups of columns' if shape.group else 'one scale'}"
    if shape.group and (layout.bk != shape.group or shape.k % shape.group):
        return (
            f"{layout.format}: bk must be the group of {shape.group} columns, not {layout.bk}, and divide K={shape.k}"
        )
    return None


def template_row(spec: KernelSpec) -> Template:
    """The row of the template that serves a spec."""
    return TEMPLATES[spec.layout.format, template_isa(spec.layout.format, spec.isa)]


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
    if op == "gemv":
        if (tile.nr, tile.kc, tile.groups, tile.mixed) != (1, 0, 0, False):
            return "a gemv tile has only a prefetch distance"
        if tile.prefetch < 0 or (tile.prefetch and not any(template.prefetch)):
            return f"prefetch must be 0 here, not {tile.prefetch}"
        return None
    if tile.prefetch:
        return "a gemm tile has no prefetch distance"
    if tile.nr not in template.nr:
        return f"nr must be one of {sorted(template.nr)}, not {tile.nr}"
    if tile.groups not in template.groups:
        return f"groups must be one of {sorted(template.groups)}, not {tile.groups}"
    if tile.mixed and not (tile.groups and any(template.mixed)):
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
        for groups in template.groups[:keep]:  # with a look-up, nr and kc serve but a rest of few tokens
            products = [(template.nr[0], blocks[0])] if groups else product(template.nr[:keep], blocks)
            mixed = template.mixed if groups else (False,)
            tiles += [Tile(nr, kc, groups=groups, mixed=m) for m, (nr, kc) in product(mixed, products)]
    return [t for t in tiles if legal(KernelSpec(op, shape, isa, layout, t)) is None]


def _cache_blocks(k_pad: int, bk: int, template: Template) -> list[int]:
    """Even divisions of K into cache blocks: as few as the template likes, then twice as many; 0 is undivided."""
    if not template.kc:
        return [0]
    few = -(-k_pad // template.kc)
    sizes = (round_up(-(-k_pad // count), bk) for count in (few, 2 * few))
    return list(dict.fromkeys(0 if kc >= k_pad else kc for kc in sizes))


def default_plan(shape: GemmShape, isa: str) -> MatrixPlan:
    """A good decision without measurement: the first candidate of each kind."""
    for layout in candidate_layouts(shape, isa):
        gemv = candidate_tiles("gemv", shape, isa, layout)
        gemm = candidate_tiles("gemm", shape, isa, layout)
        if gemv and gemm:
            return MatrixPlan(layout, gemv[0], gemm[0])
    raise UnsupportedError(f"no kernel for a {shape.m} x {shape.k} matrix on {isa!r}")
