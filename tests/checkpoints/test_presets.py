"""Presets: every model named in the documentation, and a clear error for every mistake in a file."""

from __future__ import annotations

import dataclasses
from math import log, prod
from pathlib import Path

import pytest

from bitgen import data
from bitgen.checkpoints import presets
from bitgen.checkpoints.tensors import tensor_shapes
from bitgen.errors import BitgenError, FormatError, UnsupportedError
from bitgen.gguf.writer import tensor_table
from bitgen.spec import DeltaShape, Hadamard, RopeScaling

FACTS = {  # hidden, intermediate, layers, heads, kv heads, head_dim, vocab, context, theta, eps
    "2B4T": (2560, 6912, 30, 20, 5, 128, 128256, 4096, 5e5, 1e-5),
    "0.7B": (1536, 4096, 24, 16, 16, 96, 32002, 2048, 1e4, 1e-5),
    "xl": (2048, 5460, 24, 32, 32, 64, 32002, 2048, 1e4, 1e-5),
    "3B": (3200, 8640, 26, 32, 32, 100, 32002, 2048, 1e4, 1e-5),
    "Llama3-8B-1.58": (4096, 14336, 32, 32, 8, 128, 128256, 8192, 5e5, 1e-5),
    "Falcon3-1B": (2048, 8192, 18, 8, 4, 256, 131072, 8192, 1000042, 1e-6),
    "Falcon3-3B": (3072, 9216, 22, 12, 4, 256, 131072, 4096, 1000042, 1e-6),
    "Falcon3-7B": (3072, 23040, 28, 12, 4, 256, 131072, 8192, 1000042, 1e-6),
    "Falcon3-10B": (3072, 23040, 40, 12, 4, 256, 131072, 32768, 1000042, 1e-6),
    "Falcon-E-1B": (2048, 9216, 24, 16, 2, 128, 32768, 32768, 1000042, 1e-6),
    "Falcon-E-3B": (2048, 13312, 32, 16, 2, 128, 32768, 32768, 1000042, 1e-6),
    "BitCPM4-0.5B": (1024, 4096, 24, 16, 2, 64, 73448, 32768, 1e4, 1e-5),
    "BitCPM4-1B": (2048, 6144, 28, 16, 2, 128, 73448, 32768, 1e4, 1e-5),
    "BitCPM4-3B": (2560, 10240, 32, 32, 2, 128, 73448, 32768, 1e4, 1e-5),
    "BitCPM4-8B": (4096, 16384, 32, 32, 2, 128, 73448, 32768, 1e4, 1e-5),
    "BitNet-embedding-0.6B": (1024, 3072, 28, 16, 8, 128, 151936, 32768, 1e6, 1e-6),
    "BitNet-embedding-270M": (640, 2048, 18, 4, 1, 256, 262144, 32768, 1e6, 1e-6),
    "Bonsai-1.7B": (2048, 6144, 28, 16, 8, 128, 151936, 32768, 1e6, 1e-6),
    "Bonsai-4B": (2560, 9728, 36, 32, 8, 128, 151936, 32768, 1e6, 1e-6),
    "Bonsai-8B": (4096, 12288, 36, 32, 8, 128, 151936, 65536, 1e6, 1e-6),
    "Bonsai-27B": (5120, 17408, 64, 24, 4, 256, 248320, 262144, 1e7, 1e-6),
    "Bonsai-2-27B": (5120, 17408, 64, 24, 4, 256, 248320, 262144, 1e7, 1e-6),
    "Bonsai-1.7B-1bit": (2048, 6144, 28, 16, 8, 128, 151936, 32768, 1e6, 1e-6),
    "Bonsai-4B-1bit": (2560, 9728, 36, 32, 8, 128, 151936, 32768, 1e6, 1e-6),
    "Bonsai-8B-1bit": (4096, 12288, 36, 32, 8, 128, 151936, 65536, 1e6, 1e-6),
    "stories": (256, 1024, 8, 4, 2, 64, 4096, 512, 1e4, 1e-5),
}


DELTA = DeltaShape(period=4, key_heads=16, value_heads=48, key_dim=128, value_dim=128, taps=4)
"""Of the 27B models."""


def test_every_preset_is_known_here() -> None:
    assert set(presets.names()) == set(FACTS)
    assert presets.names() == sorted(presets.names(), key=str.lower)


@pytest.mark.parametrize("name", FACTS)
def test_preset_holds_the_published_facts(name: str) -> None:
    s = presets.load(name)
    assert s.name == name
    assert (s.hidden, s.intermediate, s.layers, s.heads, s.kv_heads, s.head_dim) == FACTS[name][:6]
    assert (s.vocab, s.context, s.rope_theta, s.norm_eps) == FACTS[name][6:]
    bonsai, bitcpm, embedding = (name.startswith(each) for each in ("Bonsai", "BitCPM4", "BitNet-embedding"))
    mup, hybrid = name in ("BitCPM4-0.5B", "BitCPM4-8B"), name.endswith("27B")
    llama = name.startswith(("Llama", "Falcon")) or bitcpm
    assert (s.group, s.binary) == (128 * bonsai + 256 * bitcpm, name.endswith("-1bit"))
    if mup:
        assert (s.architecture, s.embedding_scale, s.logit_divisor) == ("minicpm", 12.0, s.hidden / 256)
        assert s.residual_scale == 1.4 / s.layers**0.5
    elif embedding or bonsai:
        qwen = "qwen35" if hybrid else "qwen3"
        assert (s.architecture, s.activation) == (("gemma3", "gelu_tanh") if s.hidden == 640 else (qwen, "silu"))
    else:
        assert s.architecture == ("llama" if llama else "bitnet-b1.58" if s.activation == "relu2" else "bitnet")
        assert s.activation == ("relu2" if name in ("2B4T", "stories") else "silu")
    assert s.sub_norms == (not llama and not embedding and not bonsai)
    assert (s.tied, s.rope_interleaved) == (
        name == "BitCPM4-0.5B" or not (llama or hybrid or name.startswith("Bonsai-8B") or name == "BitCPM4-8B"),
        llama or mup,
    )
    assert (s.input_norms, s.qk_norm, s.post_norms) == (embedding, embedding or bonsai, s.architecture == "gemma3")
    assert (s.embedding_scale, s.window) == ((640**0.5, 512) if s.architecture == "gemma3" else (12.0 if mup else 1, 0))
    if bitcpm:
        assert s.rope_scaling and (s.rope_scaling.kind, s.rope_scaling.magnitude) == ("table", 1.0)
        assert list(s.rope_scaling.divisors) == sorted(s.rope_scaling.divisors)
    else:
        yarn = RopeScaling("yarn", 4.0, s.context // 4, magnitude=1 + 0.1 * log(4))
        assert s.rope_scaling == (yarn if bonsai and not hybrid else None)
    assert (s.delta, s.attention_gate, s.rotary) == ((DELTA, True, 64) if hybrid else (None, False, s.head_dim))
    assert s.hadamard == (Hadamard(1024, signed=True, regrouped=True) if name == "Bonsai-2-27B" else None)
    assert (s.ternary_embedding, s.ternary_head) == (bonsai, bonsai)
    plain = [f for f in dataclasses.fields(s) if f.name != "activation" and f.default is not None]
    assert all(type(getattr(s, f.name)).__name__ == f.type for f in plain)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("Falcon-E-1B", 665.2), ("Falcon-E-3B", 998.8)],  # the published I2_S files have 666.3 and 999, with vocabularies
)
def test_falcon_e_has_the_size_of_its_published_files(name: str, millions: float) -> None:
    found = sum(entry.nbytes for entry in tensor_table(presets.load(name), "i2_s")) / 1e6
    assert found == pytest.approx(millions, abs=0.1)


@pytest.mark.parametrize(("name", "billions"), [("0.5B", 0.434), ("1B", 1.62), ("3B", 3.61), ("8B", 8.18)])
def test_bitcpm4_has_as_many_parameters_as_its_models(name: str, billions: float) -> None:
    weights = sum(prod(dims) for dims in tensor_shapes(presets.load(f"BitCPM4-{name}")).values())
    assert weights / 1e9 == pytest.approx(billions, rel=0.005)


@pytest.mark.parametrize(
    "spelling",
    ["2B4T", "2b4t", " 2B4T ", "microsoft/bitnet-b1.58-2B-4T", "MICROSOFT/BitNet-b1.58-2b-4t", "BITNET-B1.58-2B-4T"],
)
def test_names_and_hugging_face_ids_in_any_case(spelling: str) -> None:
    assert presets.load(spelling).name == "2B4T"


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ("2B-4T", "did you mean 2B4T"),
        ("falcon3-8b", "did you mean Falcon3"),
        ("microsoft/bitnet-2B4T", "did you mean 2B4T"),
        ("zzzzz", "known: 0.7B, 2B4T"),
        ("", "known: 0.7B, 2B4T"),
    ],
)
def test_unknown_names_get_a_hint(wrong: str, hint: str) -> None:
    with pytest.raises(UnsupportedError, match=hint):
        presets.load(wrong)


def written(folder: Path, changes: dict[str, str | None]) -> Path:
    """The 2B4T preset as a file of its own, with lines changed, added or (None) left out."""
    lines = dict(line.split(": ", 1) for line in _source().splitlines() if not line.startswith("#"))
    lines |= changes  # type: ignore[arg-type]
    path = folder / "2B4T.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in lines.items() if value is not None))
    return path


def _source() -> str:
    return (data.folder("presets") / "models" / "2B4T.yaml").read_text()


def test_the_unchanged_copy_loads(tmp_path: Path) -> None:
    assert presets.read(written(tmp_path, {})) == presets.load("2B4T")


@pytest.mark.parametrize("field", presets.FIELDS)
def test_every_missing_field_is_named(tmp_path: Path, field: str) -> None:
    path = written(tmp_path, {field: None})
    with pytest.raises(FormatError, match=f"{field} is missing") as caught:
        presets.read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("field", [f for f in presets.FIELDS if f != "hf"])
@pytest.mark.parametrize("value", ["null", "[1]", "{}", "''", "yes please"])
def test_every_field_has_a_type(tmp_path: Path, field: str, value: str) -> None:
    path = written(tmp_path, {field: value})
    with pytest.raises(BitgenError, match=f"{field}|'{value}'") as caught:
        presets.read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hidden", "0", "hidden is 0"),
        ("hidden", "-2560", "hidden is -2560"),
        ("hidden", "2560.0", "hidden is 2560.0"),
        ("layers", "true", "layers is True"),
        ("layers", "1000000000000", "layers is 1000000000000"),
        ("rope_theta", ".nan", "rope_theta is nan"),
        ("rope_theta", ".inf", "rope_theta is inf"),
        ("norm_eps", "0", "norm_eps is 0"),
        ("norm_eps", "1e-5", "norm_eps is '1e-5'"),  # YAML 1.1 reads that as a text
        ("tied", "1", "tied is 1"),
        ("heads", "21", "21 heads are not a multiple of 5 kv_heads"),
        ("head_dim", "127", "RoPE cannot turn pairs of 127 elements"),
        ("activation", "gelu", "activation 'gelu' is not supported; known: relu2, silu"),
        ("architecture", "qwen2", "architecture 'qwen2' is not supported"),
        ("name", "2B4", "name is '2B4'; it must equal the file's name"),
        ("input_norms", "true", "sub_norms and input_norms are two norms of one input"),
        ("input_norms", "1", "input_norms is 1"),
        ("window", "-1", "window is -1"),
        ("window_period", "0", "window_period is 0"),
        ("window_theta", ".nan", "window_theta is nan"),
        ("attention_scale", "x", "attention_scale is 'x'"),
        ("hf", "3", "hf is 3"),
        ("hiden", "3", "unknown key 'hiden'; did you mean hidden"),
    ],
)
def test_impossible_values_are_named(tmp_path: Path, field: str, value: str, message: str) -> None:
    with pytest.raises(BitgenError, match=message):
        presets.read(written(tmp_path, {field: value}))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("delta", "null", "delta is None; expected the fields period, key_heads, value_heads, key_dim"),
        ("delta", "{period: 4}", "delta is {'period': 4}; expected the fields period"),
        ("delta", "[1]", r"delta is \[1\]; expected the fields"),
        ("delta", "{<<: *d, more: 1}", "delta is .* expected the fields"),
        ("delta", "{<<: *d, period: 1}", "delta's period is 1; expected a whole number from 2"),
        ("delta", "{<<: *d, key_dim: true}", "delta's key_dim is True"),
        ("delta", "{<<: *d, taps: x}", "delta's taps is 'x'"),
        ("delta", "{<<: *d, key_heads: 7}", "value_heads, 48, are not a multiple of its key_heads, 7"),
        ("delta", "{<<: *d, value_dim: 100}", "value_heads x value_dim, 4800, is not a multiple of hadamard's block"),
        ("hadamard", "{block: 1024}", "hadamard is {'block': 1024}; expected the fields block, signed, regrouped"),
        ("hadamard", "{block: 512, signed: true, regrouped: true}", "hadamard's block is 512; expected one of 4, 16"),
        ("hadamard", "{block: 4096, signed: true, regrouped: true}", "hidden, 5120, is not a multiple of hadamard's"),
        ("hadamard", "{block: 1024, signed: 1, regrouped: true}", "hadamard's signed is 1; expected true or false"),
        ("group", "96", "hidden, 5120, is not a multiple of group, 96"),
        ("architecture", "qwen3", "delta is .* expected none, as models of qwen3 have it"),
    ],
)
def test_impossible_fields_of_hybrid_models_are_named(tmp_path: Path, field: str, value: str, message: str) -> None:
    source = (data.folder("presets") / "models" / "Bonsai-2-27B.yaml").read_text()
    lines = dict(line.split(": ", 1) for line in source.splitlines() if not line.startswith("#"))
    usual = lines["delta"]
    path = tmp_path / "Bonsai-2-27B.yaml"
    lines |= {field: value.replace("<<: *d", usual[1:-1]) if "<<" in value else value}
    path.write_text("".join(f"{key}: {each}\n" for key, each in lines.items()))
    with pytest.raises(BitgenError, match=message):
        presets.read(path)


@pytest.mark.parametrize("text", ["", "- 1\n", "a: [", "\x00", "!!python/object:os.system {}"])
def test_files_that_are_no_mapping(tmp_path: Path, text: str) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(text)
    with pytest.raises(FormatError, match=r"m\.yaml"):
        presets.read(path)


def test_a_missing_data_folder_is_an_error() -> None:
    with pytest.raises(BitgenError, match="data folder 'none' is missing"):
        data.folder("none")  # type: ignore[arg-type]
