"""Symbols spell specs, and can be read back."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from bitgen.spec import DeltaShape, GemmShape, KernelSpec, Layout, ModelShape, Tile

positive = st.integers(1, 1 << 20)
natural = st.integers(0, 1 << 16)
specs = st.builds(
    KernelSpec,
    st.sampled_from(["gemv", "gemm"]),
    st.builds(GemmShape, positive, positive, natural),
    st.sampled_from(["avx2", "avx512vbmi", "avx512vnni", "neon", "scalar"]),
    st.builds(
        Layout, st.sampled_from(["i1_s", "i1_g", "i2_s", "i2_g", "t5_g", "t5", "tl1", "tl2"]), positive, positive
    ),
    st.builds(Tile, st.integers(1, 64), natural, natural, natural, st.booleans()),
)


@given(specs)
def test_symbol_round_trip(spec: KernelSpec) -> None:
    parsed = KernelSpec.parse(spec.symbol)
    assert parsed == spec
    assert parsed is not None and parsed.symbol == spec.symbol
    assert GemmShape.parse(str(spec.shape)) == spec.shape


def test_other_text_is_no_symbol() -> None:
    for text in ("", "bg_i2_s_gemv", "bg_i2_s_dot_m1_k1_bm1_bk4__avx2", "x" * 50):
        assert KernelSpec.parse(text) is None


SHAPE = ModelShape(*("t", "bitnet-b1.58", 2560, 6912, 30, 20, 5, 128, 128256, 4096, 5e5, 1e-5, "relu2", True, True))


def test_matrices_fuse_their_parts() -> None:
    shape = SHAPE
    assert shape.matrices == {
        "qkv": GemmShape(3840, 2560),
        "o": GemmShape(2560, 2560),
        "gate_up": GemmShape(13824, 2560),
        "down": GemmShape(2560, 6912),
    }
    assert shape.segments["qkv"] == (2560, 640, 640)
    assert list(shape.matrices_of("qkv")) == ["qkv"] and not shape.matrices_of("head")


HYBRID = replace(
    SHAPE, layers=8, sub_norms=False, attention_gate=True, group=128,
    delta=DeltaShape(period=4, key_heads=2, value_heads=6, key_dim=128, value_dim=64, taps=4),
)  # fmt: skip


def test_layers_of_two_kinds() -> None:
    assert [HYBRID.attends(n) for n in range(8)] == 2 * [False, False, False, True]
    assert HYBRID.layer_roles(3) == ["qkv", "o", "gate_up", "down"]
    assert HYBRID.layer_roles(4) == ["delta_in", "delta_out", "gate_up", "down"]
    assert HYBRID.segments["qkv"] == (5120, 640, 640) and HYBRID.segments["delta_in"] == (896, 384)
    assert HYBRID.matrices["delta_in"] == GemmShape(1280, 2560, 128)
    assert HYBRID.matrices["delta_out"] == GemmShape(2560, 384, 128)
    assert [HYBRID.layers_with(role) for role in ("qkv", "delta_in", "down")] == [2, 6, 8]
    assert HYBRID.attending == 2 and SHAPE.attending == 30
    attends, delta = 6400 * 2560 + 2560 * 2560, 1280 * 2560 + 2560 * 384
    assert HYBRID.ternary_weights == 2 * attends + 6 * delta + 8 * (13824 * 2560 + 2560 * 6912)
    assert HYBRID.layer_norms(0) == {"attn_norm": 2560, "ssm_norm": 64, "ffn_norm": 2560}
    assert HYBRID.state_bytes == 6 * 4 * (6 * 128 * 64 + 3 * 896) and SHAPE.state_bytes == 0


def test_matrices_with_inputs_of_their_own_are_apart() -> None:
    shape = replace(SHAPE, input_norms=True)
    assert shape.matrices == {
        "q": GemmShape(2560, 2560),
        **{part: GemmShape(640, 2560) for part in "kv"},
        "o": GemmShape(2560, 2560),
        **{part: GemmShape(6912, 2560) for part in ("gate", "up")},
        "down": GemmShape(2560, 6912),
    }
    assert sum(s.m * s.k for s in shape.matrices.values()) == sum(s.m * s.k for s in SHAPE.matrices.values())
    assert list(shape.matrices_of("qkv")) == ["q", "k", "v"] and list(shape.matrices_of("down")) == ["down"]
