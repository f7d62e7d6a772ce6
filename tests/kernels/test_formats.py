"""The table of formats: sizes, alignment, what packs also unpacks, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitgen.errors import UnsupportedError
from bitgen.kernels.formats import ALIGN, FORMATS, Format
from bitgen.spec import GemmShape, Layout, round_up
from bitgen.tune.bands import random_codes


def layouts(format: Format) -> st.SearchStrategy[Layout]:
    return st.builds(
        lambda a, b: Layout(format.name, a * format.bm_multiple, b * format.bk_multiple),
        st.integers(1, 4),
        st.integers(1, 3),
    )


@pytest.mark.parametrize("format", FORMATS.values(), ids=list(FORMATS))
@given(data=st.data(), m=st.integers(1, 150), k=st.integers(1, 400))
def test_geometry_and_round_trip(format: Format, data: st.DataObject, m: int, k: int) -> None:
    layout = data.draw(layouts(format))
    k = round_up(k, layout.bk) if format.grouped else k
    shape, scales = GemmShape(m, k), np.ones((m, k // layout.bk), np.float32)
    g = format.geometry(shape, layout)
    assert g.m_pad == g.panels * layout.bm and m <= g.m_pad < m + layout.bm
    assert k <= g.k_pad
    assert g.weight_bytes % ALIGN == 0 == g.operand_bytes % ALIGN
    beside = 2 * g.m_pad * g.k_pad // layout.bk * format.grouped
    assert -1e-6 < g.weight_bytes - g.m_pad * g.k_pad * format.bits / 8 - beside < ALIGN + g.m_pad * layout.bk / 24
    codes = random_codes(GemmShape(m, k, binary=format.binary), np.random.default_rng(m * 1000 + k))
    packed = format.pack(codes, layout, scales)
    assert packed.dtype == np.uint8 and packed.shape == (g.weight_bytes,)
    assert np.array_equal(format.unpack(packed, shape, layout), codes)


def test_sizes_of_known_matrices() -> None:
    """2B4T's down matrix, and the 3B's, whose K is no multiple of any block."""
    down, odd = GemmShape(2560, 6912), GemmShape(3200, 8640)
    g = FORMATS["i2_s"].geometry(down, Layout("i2_s", 4, 128))
    assert (g.m_pad, g.k_pad, g.panels, g.weight_bytes) == (2560, 6912, 640, 2560 * 6912 // 4)
    assert g.operand_bytes == 64 + 6912
    assert FORMATS["i2_s"].geometry(odd, Layout("i2_s", 4, 128)).k_pad == 8704
    g = FORMATS["t5"].geometry(GemmShape(13824, 2560), Layout("t5", 5, 128))
    assert (g.m_pad, g.k_pad, g.panels, g.weight_bytes) == (13825, 2560, 2765, 2765 * 2560)
    g = FORMATS["tl2"].geometry(down, Layout("tl2", 64, 96))
    assert g.weight_bytes == 2560 * 6912 * 5 // 24  # 6912 = 72 * 96: no pairs
    assert g.operand_bytes == 6912 // 3 * 32
    g = FORMATS["tl2"].geometry(GemmShape(64, 2560), Layout("tl2", 64, 96))
    assert g.weight_bytes == 64 * (2496 * 5 // 24 + 64 // 4)


@pytest.mark.parametrize("format", FORMATS.values(), ids=list(FORMATS))
def test_illegal_layouts(format: Format) -> None:
    good = Layout(format.name, format.bm_multiple, format.bk_multiple)
    assert format.illegal(good) is None
    bad_bk = Layout(format.name, good.bm, good.bk + 1)
    assert "bk" in str(format.illegal(bad_bk))
    assert "bm" in str(format.illegal(Layout(format.name, 0, good.bk)))
    with pytest.raises(UnsupportedError, match="bk must be"):
        format.geometry(GemmShape(1, 1), bad_bk)
