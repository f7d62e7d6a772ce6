"""Models with a scale for every group of a row: Q2_0 files, the oracle, PyTorch's logits, arm64's bits."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import runtime_lab as lab

import bitgen
from bitgen import targets
from bitgen.checkpoints import reference
from bitgen.checkpoints.architectures import shape_from
from bitgen.checkpoints.synth import SynthCheckpoint
from bitgen.checkpoints.tensors import is_ternary, tensor_shapes, ternary_ends
from bitgen.compile import library, pack
from bitgen.compile.clang import BuildOptions
from bitgen.errors import FormatError, UnsupportedError
from bitgen.gguf import types
from bitgen.gguf.container import Container
from bitgen.gguf.reader import read_gguf
from bitgen.gguf.writer import write_gguf
from bitgen.kernels import plan
from bitgen.spec import ModelShape

QWEN3 = {"architecture": "qwen3", "vocab": 320, "context": 64}
SHAPES = [dataclasses.replace(lab.SHAPES[name], **QWEN3) for name in ("bonsai", "bonsai-64", "bonsai-1bit")]
SHAPES.append(dataclasses.replace(lab.SHAPES["bitcpm"], **QWEN3 | {"architecture": "minicpm"}))
SHAPES += [
    dataclasses.replace(shape, name=f"{shape.name}-ternary", ternary_embedding=True, ternary_head=True)
    for shape in SHAPES
]
TOKENS = [1, 17, 300, 299, 5, 4, 100, 1, 17]
each_group = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)


# ---- the definition ----


def test_the_oracle_is_a_product_of_dequantised_groups() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(-1, 2, (9, 256)).astype(np.int8)
    scales = rng.random((9, 4)).astype(np.float16).astype(np.float32)
    x = rng.standard_normal((5, 256)).astype(np.float32) * np.repeat([1e-3, 1, 30, 1e4], 64).astype(np.float32)
    q, steps = reference.quantise_groups(x, 64)
    near = q * np.repeat(steps, 64, axis=1).astype(np.float64)
    assert (np.abs(near - x) <= np.repeat(steps, 64, axis=1) * 0.501).all(), "half a step of its own group"
    want = near @ (codes * np.repeat(scales, 64, axis=1)).T.astype(np.float64)
    got = reference.group_linear(x, codes, scales)
    assert got.dtype == np.float32 and np.abs(got - want).max() < 1e-6 * np.abs(want).max()


@pytest.mark.parametrize("bad", [1 / 3, np.inf, np.nan, -1.0, 1e6])
def test_scales_that_kernels_cannot_hold_are_refused(tmp_path: Path, bad: float) -> None:
    class Spoilt(SynthCheckpoint):
        def ternary(self, name: str) -> tuple[np.ndarray, np.ndarray]:
            codes, scales = super().ternary(name)
            assert isinstance(scales, np.ndarray)
            scales[3, 1] = bad
            return codes, scales

    checkpoint = Spoilt(SHAPES[0])
    with pytest.raises(UnsupportedError, match=r"attn_q.weight: a scale of a group is not a finite float16 number"):
        pack.write(tmp_path / "m.bgpk", checkpoint, plan.of_model(SHAPES[0], "scalar"))
    with pytest.raises((FormatError, UnsupportedError), match=r"scale"):
        write_gguf(tmp_path / "m.gguf", checkpoint)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group": 24}, "group is 24; expected a multiple of 16"),
        ({"group": 512}, "group is 512; expected a whole number from 0 to 256"),
        ({"hidden": 320}, "hidden, 320, is not a multiple of group, 128"),
        ({"heads": 2, "head_dim": 32}, "heads x head_dim, 64, is not a multiple of group, 128"),
        ({"intermediate": 576}, "intermediate, 576, is not a multiple of group, 128"),
    ],
)
def test_groups_are_whole(change: dict[str, int], message: str) -> None:
    values = {f.name: getattr(SHAPES[0], f.name) for f in dataclasses.fields(SHAPES[0])}
    with pytest.raises(FormatError, match=message):
        shape_from(values | change, "here")


# ---- files ----


@pytest.fixture(scope="module", params=SHAPES, ids=lambda s: s.name)
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelShape, Path]:
    path = tmp_path_factory.mktemp("groups") / "m.gguf"
    write_gguf(path, SynthCheckpoint(request.param, 3))
    return request.param, path


STORED = {64: (types.Q2_0, 18), 128: (types.Q2_0, 34), 256: (types.TQ2_0, 66)}
"""Group -> type id and bytes of a block, where no type is named. Binary weights are stored in Q1_0."""


def test_scales_of_groups_come_back(file: tuple[ModelShape, Path], tmp_path: Path) -> None:
    """Also through a copy. Blocks of 64 and 128 have one id and their own size."""
    shape, path = file
    write_gguf(tmp_path / "copy.gguf", read_gguf(path))
    assert (tmp_path / "copy.gguf").read_bytes() == path.read_bytes()
    original, back = SynthCheckpoint(shape, 3), read_gguf(path)
    assert back.shape == shape
    ends = ternary_ends(shape)
    for name in [*filter(is_ternary, tensor_shapes(shape)), *ends]:
        if name in ends:
            (codes, scales), (want, want_scales) = (c.ternary_rows(name, slice(None)) for c in (back, original))
            assert np.array_equal(back.dense(name), original.dense(name))
        else:
            (codes, scales), (want, want_scales) = back.ternary(name), original.ternary(name)
        assert np.array_equal(codes, want) and np.array_equal(scales, want_scales)
        tensor = Container(path).tensors[name]
        id, block = (types.Q1_0, 18) if shape.binary else STORED[shape.group]
        assert (tensor.type, tensor.nbytes) == (id, codes.size // shape.group * block)


@pytest.mark.parametrize(
    ("group", "type", "message"),
    [
        (128, "i2_s", "a model with a scale for every 128 weights cannot be written as i2_s"),
        (128, "tq2_0", "every 128 weights cannot be written as tq2_0: take q2_0 or pq2_0 or ptq1_0"),
        (
            128,
            "q1_0",
            "every 128 weights and weights that are 0 cannot be written as q1_0: take q2_0 or pq2_0 or ptq1_0",
        ),
        (64, "ptq1_0", "every 64 weights cannot be written as ptq1_0: take q2_0"),
        (32, None, "every 32 weights cannot be written as q2_0: no type that is written here holds them"),
        (0, "q2_0", "one scale for each matrix cannot be written as q2_0: take i2_s or tq1_0 or tq2_0 or t5"),
    ],
)
def test_types_that_cannot_hold_the_scales_are_refused(
    tmp_path: Path, group: int, type: str | None, message: str
) -> None:
    with pytest.raises(UnsupportedError, match=message):
        write_gguf(tmp_path / "m.gguf", SynthCheckpoint(dataclasses.replace(SHAPES[0], group=group)), type)


def test_the_engine_runs_the_file(file: tuple[ModelShape, Path]) -> None:
    shape, path = file
    model = bitgen.Model.load(path)
    assert np.array_equal(model.logits(TOKENS), lab.logits(SynthCheckpoint(shape, 3), TOKENS))
    tokens = list(model.generate("a", 5, temperature=0, stop=False))
    assert tokens


# ---- PyTorch ----


@pytest.mark.parametrize("file", [*SHAPES[:3], SHAPES[4]], indirect=True, ids=lambda s: s.name)
def test_logits_of_transformers(file: tuple[ModelShape, Path]) -> None:
    """Qwen3 in float32 with the weights as floats, and activations rounded per group before each linear.

    As in test_transformers.py, an activation on the border between two integers may go either way there and here.
    """
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    shape, path = file
    theirs = qwen3(torch, transformers, read_gguf(path))
    model, close = bitgen.Model.load(path), []
    rng = np.random.default_rng(0)
    for _ in range(16):
        tokens = rng.integers(0, shape.vocab, 2).tolist()
        with torch.no_grad():
            want = theirs(torch.tensor([tokens])).logits[0].numpy()
        off = np.abs(model.logits(tokens, cache="f32") - want)
        assert off.max() < 0.3 * want.std()
        close.append(off.max() < 1e-3)
    assert np.mean(close) >= 0.6


def qwen3(torch, transformers, checkpoint):  # type: ignore[no-untyped-def]
    """The model of a checkpoint as transformers has it, with rounding before its linears."""
    s = checkpoint.shape
    config = transformers.Qwen3Config(
        vocab_size=s.vocab, hidden_size=s.hidden, intermediate_size=s.intermediate, num_hidden_layers=s.layers,
        num_attention_heads=s.heads, num_key_value_heads=s.kv_heads, head_dim=s.head_dim, rms_norm_eps=s.norm_eps,
        max_position_embeddings=s.context, tie_word_embeddings=s.tied, attn_implementation="eager",
        rope_theta=s.rope_theta,
    )  # fmt: skip
    model = transformers.Qwen3ForCausalLM(config).float().eval()
    names = {
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
        "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    }  # fmt: skip
    top = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    state = {}
    for name in tensor_shapes(s):
        parts = name.split(".")
        key = f"model.layers.{parts[1]}.{names[parts[2]]}" if parts[0] == "blk" else top[parts[0]]
        if is_ternary(name):
            codes, scales = checkpoint.ternary(name)
            values = codes * np.repeat(scales, s.group, axis=1)
        else:
            values = checkpoint.dense(name).astype(np.float32)
        state[f"{key}.weight"] = torch.from_numpy(values.copy())
    if s.tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)

    def rounded(_, inputs):  # type: ignore[no-untyped-def]
        x = inputs[0]
        groups = x.reshape(*x.shape[:-1], -1, s.group)
        scale = 127 / groups.abs().amax(-1, keepdim=True).clamp(min=1e-5)
        return (((groups * scale).round().clamp(-128, 127) / scale).reshape(x.shape),)

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            module.register_forward_pre_hook(rounded)
    return model


# ---- another architecture ----


@pytest.mark.qemu
@each_group
def test_arm64_gives_the_same_bits(shape: ModelShape, tmp_path: Path) -> None:
    qemu = shutil.which("qemu-aarch64-static")
    if qemu is None:
        pytest.skip("qemu-aarch64-static is not installed (Debian: qemu-user-static)")
    checkpoint = SynthCheckpoint(shape, 3)
    want, text = lab.logits(checkpoint, TOKENS), list(TOKENS)
    for _ in range(3):
        text.append(int(lab.logits(checkpoint, text)[-1].argmax()))
    platform = targets.platform_of("arm64")
    levels = targets.levels(platform)
    lookups = [plan.of_model(shape, level.isa) for level in levels]
    program = library.for_model(shape, lookups, BuildOptions(platform, "runner.c", tmp_path / "build")).path
    for found in lookups:
        pack.write(tmp_path / f"{found.isa}.bgpk", checkpoint, found, "certified" if shape.ternary_head else "f16")
        for chunk in ("1", "4", "9"):
            command = [qemu, "-cpu", "max", str(program), "logits", str(tmp_path / f"{found.isa}.bgpk"), "--isa"]
            command += [found.isa, "--chunk", chunk, "--threads", "2"]
            out = subprocess.run(command, input=" ".join(map(str, TOKENS)).encode(), capture_output=True, timeout=300)
            assert out.returncode == 0, out.stderr.decode()
            assert np.array_equal(np.frombuffer(out.stdout, np.float32).reshape(want.shape), want), found.isa
        command = [*command[: command.index("logits")], "generate", str(tmp_path / f"{found.isa}.bgpk"), "3"]
        command += ["--isa", found.isa, "--threads", "2"]
        out = subprocess.run(command, input=" ".join(map(str, TOKENS)).encode(), capture_output=True, timeout=300)
        assert [int(token) for token in out.stdout.split()] == text[-3:], (found.isa, out.stderr.decode())
