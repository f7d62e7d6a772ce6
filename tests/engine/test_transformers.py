"""End to end against transformers in float32: tiny random models of every family, logits and greedy tokens.

Logits of two right implementations need not be close everywhere. Activations are rounded to int8, and now and
then one lies so near the middle between two integers that float noise decides; the integers are then one
apart, and what follows is off by some hundredths. transformers differs from itself like that when its matmuls
sum in another order. So the reference adopts transformers' integers, after checking that each is a right
rounding of its own value too, and must then agree everywhere. The runtime's integers cannot be chosen: it must
agree to 1e-3 wherever no rounding was that close, which is on most short prompts. Its KV cache is float32 here,
since the usual float16 moves activations by more than float noise does.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="compares with PyTorch models")
transformers = pytest.importorskip("transformers", reason="compares with transformers")

import hf_models  # noqa: E402
from hf_models import VOCAB, Tiny  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from bitgen.checkpoints import reference  # noqa: E402
from bitgen.checkpoints.checkpoint import Checkpoint  # noqa: E402
from bitgen.convert import HfCheckpoint, convert  # noqa: E402
from bitgen.data import shipped_path  # noqa: E402
from bitgen.engine.model import Model  # noqa: E402
from bitgen.gguf.container import Container  # noqa: E402
from bitgen.gguf.reader import read_gguf  # noqa: E402

pytestmark = pytest.mark.transformers

TOLERANCE = 1e-4  # of logits with a standard deviation of about 1
LARGEST, RUNTIME = "largest logit difference", "that of the runtime"  # on record: conftest.py prints them
TIE = 1e-3  # steps of int8: how far float noise moves an activation, generously

BITNET = Tiny("BitNetForCausalLM", "autobitlinear")
LLAMA = Tiny("LlamaForCausalLM", "bitlinear", act="silu", tied=False)
QWEN3 = replace(LLAMA, architecture="Qwen3ForCausalLM", eps=1e-6, theta=1e6)
HUNYUAN = replace(
    LLAMA, architecture="HunYuanDenseV1ForCausalLM", plain=True, tied=True,
    extra={"rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0, "beta_fast": 32, "mscale": 1.0}},
)  # fmt: skip
MINICPM = replace(
    LLAMA, architecture="MiniCPMForCausalLM", plain=True, tied=True,
    extra={"scale_emb": 12, "scale_depth": 0.5, "dim_model_base": 96},
)  # fmt: skip
GEMMA3 = Tiny(
    "Gemma3ForCausalLM", "autobitlinear", act="gelu_pytorch_tanh", eps=1e-6, theta=1e6, layers=3,
    extra={"sliding_window": 5, "sliding_window_pattern": 3, "rope_local_base_freq": 1e4, "query_pre_attn_scalar": 64},
)  # fmt: skip
LAYERS = ["sliding_attention", "full_attention"]
THETAS = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 500.0}}
STRETCHED = {**THETAS, "full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 4.0}}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "short_factor": [1 + i / 8 for i in range(32)], "long_factor": [9.0] * 32, "factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
MODELS = {
    "bitnet": BITNET,
    "bitnet-head128-untied-bf16": replace(
        BITNET, heads=2, kv_heads=1, head_dim=128, tied=False, dtype=torch.bfloat16, seed=1
    ),
    "bitnet-head256": replace(BITNET, hidden=512, heads=2, kv_heads=2, head_dim=256, layers=1, seed=2),
    "bitnet-online": replace(BITNET, online=True, seed=3),
    "bitnet-online-bf16": replace(BITNET, online=True, dtype=torch.bfloat16, seed=4),
    "bitnet-unpacked": replace(BITNET, unpacked=True, seed=9),
    "bitnet-bitlinear": replace(BITNET, linear="bitlinear", seed=5),
    "llama": replace(LLAMA, seed=6),
    "llama-head256-bf16": replace(
        LLAMA,
        hidden=512,
        heads=2,
        kv_heads=1,
        head_dim=256,
        eps=1e-6,
        theta=1000042.0,
        dtype=torch.bfloat16,
        seed=7,
    ),
    "llama-wide-heads-tied": replace(LLAMA, heads=4, kv_heads=4, head_dim=128, tied=True, seed=8),
    "falcon-e": replace(LLAMA, heads=4, kv_heads=1, theta=1000042.0, eps=1e-6, dtype=torch.bfloat16, seed=10),
    "falcon-e-fused": replace(LLAMA, heads=4, kv_heads=1, fused=True, seed=11),
    "trilm": replace(LLAMA, plain=True, dtype=torch.float16, seed=12),
    "qwen3": replace(QWEN3, heads=4, kv_heads=2, head_dim=128, seed=13),
    "qwen3-tied-bf16": replace(QWEN3, linear="autobitlinear", online=True, tied=True, dtype=torch.bfloat16, seed=14),
    "qwen3-embedding": replace(QWEN3, tied=True, input_norms=True, dtype=torch.bfloat16, seed=15),
    "qwen3-embedding-no-head": replace(QWEN3, architecture="Qwen3Model", input_norms=True, tied=True, seed=16),
    "gemma3": replace(GEMMA3, seed=17),
    "gemma3-embedding": replace(
        GEMMA3, kv_heads=1, head_dim=128, input_norms=True, dtype=torch.bfloat16, seed=18,
        extra={**GEMMA3.extra, "query_pre_attn_scalar": 100},
    ),
    "gemma3-embedding-no-head": replace(
        GEMMA3, architecture="Gemma3TextModel", layers=2, input_norms=True, seed=19,
        extra={"sliding_window": 7, "layer_types": LAYERS, "rope_parameters": THETAS},
    ),
    "hunyuan": replace(HUNYUAN, seed=24),
    "hunyuan-packed-bf16": replace(
        HUNYUAN, plain=False, heads=2, kv_heads=1, head_dim=128, dtype=torch.bfloat16, seed=25
    ),
    "minicpm": replace(MINICPM, seed=26),
    "minicpm-untied-f16": replace(MINICPM, tied=False, layers=3, dtype=torch.float16, seed=27),
    "bitnet-f32-tied": replace(BITNET, numbers="f32", seed=20),
    "llama-f32": replace(LLAMA, numbers="f32", seed=21),
    "qwen3-bf16-small": replace(QWEN3, heads=4, kv_heads=2, head_dim=128, numbers="bf16-small", seed=22),
    "llama-bf16-large": replace(LLAMA, numbers="bf16-large", seed=23),
    "qwen3-yarn": replace(QWEN3, heads=4, kv_heads=2, head_dim=128, seed=24, extra={"rope_scaling": YARN}),
    "llama3-rope": replace(LLAMA, seed=25, extra={"rope_parameters": {**LLAMA3, "rope_theta": 5e5}}),
    "llama-longrope": replace(LLAMA, seed=26, extra={"rope_scaling": LONGROPE}),
    "gemma3-linear": replace(
        GEMMA3, layers=2, seed=27, extra={"sliding_window": 7, "layer_types": LAYERS, "rope_parameters": STRETCHED},
    ),
}  # fmt: skip


def config_of(directory: Path) -> Any:
    """The config of a directory. transformers has no MiniCPM, but Granite, which scales by the same equations."""
    values = json.loads((directory / "config.json").read_text())
    if values["model_type"] != "minicpm":
        return transformers.AutoConfig.from_pretrained(directory)
    multipliers = {
        "embedding_multiplier": values["scale_emb"],
        "residual_multiplier": values["scale_depth"] / values["num_hidden_layers"] ** 0.5,
        "logits_scaling": values["hidden_size"] / values["dim_model_base"],
        "attention_multiplier": values["head_dim"] ** -0.5,
    }
    return transformers.GraniteConfig(**values | multipliers | {"model_type": "granite"})


class Torch:
    """A transformers model in float32, and the int8 activations of its linears in the order they ran."""

    def __init__(self, directory: Path) -> None:
        config = config_of(directory)
        if getattr(config, "quantization_config", None):
            model = transformers.AutoModelForCausalLM.from_pretrained(
                directory, dtype=torch.float32, attn_implementation="eager"
            )
        else:
            model = with_int_linears(config, directory)
        # as loaded, scales and unpacked weights keep the type of the file; for float32 they must be cast by hand
        self.model = torch.nn.Module.float(model).eval()
        self.integers: list[np.ndarray] = []
        for module in self.model.modules():
            if type(module).__name__ in ("BitLinear", "AutoBitLinear", "Int8"):
                module.register_forward_pre_hook(lambda _, inputs: self.integers.append(int8(inputs[0][0])))

    def logits(self, tokens: Any) -> np.ndarray:
        """Logits [n, vocab]; `integers` are those of this call."""
        self.integers.clear()
        with torch.no_grad():
            return self.model(torch.tensor(tokens)[None]).logits[0].numpy()

    def greedy(self, prompt: list[int], steps: int) -> list[int]:
        ids = self.model.generate(
            torch.tensor([prompt]), max_new_tokens=steps, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        return ids[0, len(prompt) :].tolist()


class Int8(torch.nn.Module):
    """Activations as they come back from int8, by absmax of each token."""

    def forward(self, x: Any) -> Any:
        scale = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
        return torch.clamp(torch.round(x * scale), -128, 127) / scale


class IntLinear(torch.nn.Module):
    """A linear on int8 activations, of the input's norm where `normed`, with absmean ternary weights where `master`."""

    def __init__(self, m: int, k: int, eps: float, normed: bool, master: bool) -> None:
        super().__init__()
        self.weight, self.master = torch.nn.Parameter(torch.empty(m, k)), master
        self.norm = torch.nn.RMSNorm(k, eps) if normed else torch.nn.Identity()
        self.int8 = Int8()

    def forward(self, x: Any) -> Any:
        w = self.weight
        if self.master:
            s = 1 / w.double().abs().mean().float().clamp(min=1e-5)
            w = (w * s).round().clamp(-1, 1) / s
        return self.int8(self.norm(x)) @ w.T


def with_int_linears(config: Any, directory: Path) -> Any:
    """The class of a config with every linear but the head replaced; as the embedding models and TriLM are made."""
    tensors: dict[str, Any] = {}
    for file in sorted(directory.glob("*.safetensors")):
        tensors |= load_file(file)
    if "embed_tokens.weight" in tensors:
        tensors = {f"model.{name}": t for name, t in tensors.items()}
    tensors = {name: t.float() for name, t in tensors.items()}
    config.tie_word_embeddings = "lm_head.weight" not in tensors
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    for name, linear in list(model.model.named_modules()):
        if isinstance(linear, torch.nn.Linear):
            normed = f"model.{name}.norm.weight" in tensors
            parent, _, own = name.rpartition(".")
            new = IntLinear(linear.out_features, linear.in_features, config.rms_norm_eps, normed, master=normed)
            setattr(model.model.get_submodule(parent), own, new)
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    return model


def int8(x: Any) -> np.ndarray:
    """The integers transformers' linears make of x [n, k]."""
    scale = 127 / x.abs().max(dim=-1, keepdim=True).values.clamp(min=1e-5)
    return (x * scale).round().clamp(-128, 127).numpy()


def reference_logits(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Checkpoint, tokens: Any, integers: list[np.ndarray]
) -> np.ndarray:
    """The reference's logits with the given int8 activations, each checked to be a right rounding."""
    taken = iter(integers)
    quantise = reference.quantise

    def adopt(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        _, s = quantise(x)
        theirs = next(taken)
        assert np.abs(x * s[:, None] - theirs).max() < 0.5 + TIE, "not a rounding of the same activations"
        return theirs.astype(np.int8), s

    with monkeypatch.context() as patch:
        patch.setattr(reference, "quantise", adopt)
        logits = reference.forward(checkpoint, tokens)
    assert next(taken, None) is None
    return logits


def prompts(count: int, length: int, seed: int = 0, vocab: int = VOCAB) -> list[list[int]]:
    """Random token ids."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocab, length).tolist() for _ in range(count)]


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Torch]:
    """A model directory and the same in transformers. Odd seeds are stored in two shards."""
    directory = hf_models.save(request.param, tmp_path_factory.mktemp("hf") / "tiny", 1 + request.param.seed % 2)
    return directory, Torch(parts_apart(request.param, directory))


def parts_apart(model: Tiny, directory: Path) -> Path:
    """The same model with its fused matrices taken apart, which is how transformers knows it."""
    if not model.fused:
        return directory
    tensors, sizes = hf_models.random_tensors(model), replace(model, fused=False).matrices()
    for module in model.matrices():
        layer, fused = module.rsplit(".", 2)[0], ".".join(module.rsplit(".", 2)[1:])
        if fused in hf_models.FUSED:
            packed, scale = tensors.pop(f"{module}.weight"), tensors.pop(f"{module}.weight_scale")
            codes = torch.cat([packed >> shift & 3 for shift in (0, 2, 4, 6)]).long() - 1
            parts = [f"{layer}.{part}" for part in hf_models.FUSED[fused]]
            for part, rows in zip(parts, codes.split([sizes[part][0] for part in parts]), strict=True):
                tensors |= {f"{part}.weight": hf_models.pack(rows), f"{part}.weight_scale": scale.clone()}
    apart = directory.with_name("apart")
    apart.mkdir()
    hf_models.save_config(model, apart)
    hf_models.save_file(tensors, apart / "model.safetensors", metadata={"format": "pt"})
    return apart


Record = Callable[[str, object], None]


def test_logits(tiny: tuple[Path, Torch], monkeypatch: pytest.MonkeyPatch, record_property: Record) -> None:
    directory, model = tiny
    check_logits(HfCheckpoint(directory), model, monkeypatch, record_property)


def check_logits(
    checkpoint: Checkpoint, model: Torch | OneBitLLM, monkeypatch: pytest.MonkeyPatch, record: Record
) -> None:
    """The reference's logits everywhere, given the integers of `model`; the largest difference goes on record."""
    largest = 0.0
    for tokens in prompts(4, 24):
        want = model.logits(tokens)
        got = reference_logits(monkeypatch, checkpoint, tokens, model.integers)
        largest = max(largest, float(np.abs(got - want).max()))
    record(LARGEST, f"{largest:.1e}")
    assert largest < TOLERANCE


def test_logits_without_help(tiny: tuple[Path, Torch]) -> None:
    """With the reference's own integers: most short prompts have no rounding so close that it matters."""
    directory, model = tiny
    checkpoint = HfCheckpoint(directory)
    assert agree(differences(lambda tokens: reference.forward(checkpoint, tokens), model))


def test_greedy(tiny: tuple[Path, Torch], monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as transformers' own logits of all tokens at once follow what it generates one by one."""
    directory, model = tiny
    prompt = prompts(1, 6)[0]
    new = model.greedy(prompt, 20)
    own = model.logits(prompt + new)
    logits = reference_logits(monkeypatch, HfCheckpoint(directory), prompt + new, model.integers)
    flip = float(behind(new, own[len(prompt) - 1 : -1]).max()) + 2 * TOLERANCE
    assert follows(new, logits[len(prompt) - 1 : -1], flip)


def test_through_gguf(tiny: tuple[Path, Torch], tmp_path: Path) -> None:
    """Directory -> GGUF -> logits: the very same bits as from the directory."""
    directory, _ = tiny
    convert(directory, tmp_path / "m.gguf")
    tokens = prompts(1, 12)[0]
    want = reference.forward(HfCheckpoint(directory), tokens)
    assert (reference.forward(read_gguf(tmp_path / "m.gguf"), tokens) == want).all()


def differences(forward: Callable[[list[int]], np.ndarray], model: Torch | OneBitLLM, vocab: int = VOCAB) -> np.ndarray:
    """The largest difference of logits of each of 16 short prompts; none may be far off."""
    largest = []
    for tokens in prompts(16, 2, vocab=vocab):
        want = model.logits(tokens)
        off = np.abs(forward(tokens) - want)
        assert off.max() < 0.3 * want.std(), "further off than a rounding could be"
        largest.append(off.max())
    return np.array(largest)


def agree(differences: np.ndarray) -> bool:
    """Most short prompts have no rounding so close that it matters, and all of their logits agree to 1e-3."""
    return bool((differences < 1e-3).mean() >= 0.6)


def behind(tokens: list[int], logits: np.ndarray) -> np.ndarray:
    """How far each token's logit lies below the greatest of its row of [n, vocab]."""
    return np.asarray(logits.max(axis=1) - logits[np.arange(len(tokens)), tokens])


def follows(new: list[int], logits: np.ndarray, flip: float = 0.0) -> bool:
    """Are these the greedy tokens of logits [n, vocab]? Nine in ten at least, the rest within `flip` of it."""
    off = behind(new, logits)
    return bool((off <= max(flip, 2 * TOLERANCE)).all() and (off <= 2 * TOLERANCE).mean() >= 0.9)


# ---- the checks can fail ----


@pytest.mark.parametrize(
    "fault",
    [{"act": "silu"}, {"linear": "bitlinear"}, {"theta": 20000.0}, {"eps": 1e-2}],
    ids=lambda f: next(iter(f)),
)
def test_a_wrong_config_is_noticed(fault: dict[str, Any], tmp_path: Path) -> None:
    """SiLU for relu², dividing by the scale for multiplying, another theta or epsilon: logits move visibly."""
    model = Torch(hf_models.save(BITNET, tmp_path))
    hf_models.save_config(replace(BITNET, **fault), tmp_path)
    wrong = HfCheckpoint(tmp_path)
    for tokens in prompts(4, 24):
        off = np.abs(reference.forward(wrong, tokens) - model.logits(tokens))
        assert np.median(off) > 100 * TOLERANCE


@pytest.fixture(scope="module")
def embedding(tmp_path_factory: pytest.TempPathFactory) -> tuple[HfCheckpoint, Torch]:
    """Everything that an architecture can have at once."""
    directory = hf_models.save(MODELS["gemma3-embedding"], tmp_path_factory.mktemp("hf") / "faulty")
    return HfCheckpoint(directory), Torch(directory)


@pytest.mark.parametrize(
    "fault",
    [
        *({"qk_norm": False}, {"input_norms": False}, {"post_norms": False}, {"embedding_scale": 1.0}),
        *({"attention_scale": 0.0}, {"window": 0}, {"window": 6}, {"window_period": 2}, {"window_theta": 1e6}),
        *({"activation": "silu"}, {"rope_theta": 1e4}, {"rope_interleaved": True}),
    ],
    ids=lambda f: "-".join(map(str, *f.items())),
)
def test_a_wrong_shape_is_noticed(
    fault: dict[str, Any], embedding: tuple[HfCheckpoint, Torch], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, model = embedding
    right = [reference.forward(checkpoint, tokens) for tokens in prompts(2, 24)]
    monkeypatch.setattr(checkpoint, "_shape", replace(checkpoint.shape, **fault))
    for tokens, close in zip(prompts(2, 24), right, strict=True):
        off = np.abs(reference.forward(checkpoint, tokens) - model.logits(tokens))
        assert np.median(off[-8:]) > 20 * TOLERANCE + 2 * np.median(np.abs(close - model.logits(tokens))[-8:])


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("qwen3-yarn", {"magnitude": 1.0}),
        ("qwen3-yarn", {"kind": "linear"}),
        ("qwen3-yarn", {"original_context": 64}),
        ("llama3-rope", None),
        ("llama-longrope", {"magnitude": 1.0}),
        ("llama-longrope", {"divisors": tuple(LONGROPE["long_factor"])}),  # type: ignore[arg-type]
        ("gemma3-linear", None),
    ],
)
def test_a_wrong_rope_is_noticed(
    name: str, fault: dict[str, Any] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = hf_models.save(MODELS[name], tmp_path / "faulty")
    checkpoint, model = HfCheckpoint(directory), Torch(directory)
    scaling = checkpoint.shape.rope_scaling
    assert scaling is not None
    wrong = None if fault is None else replace(scaling, **fault)
    tokens = prompts(1, 24)[0]
    close = np.abs(reference_logits(monkeypatch, checkpoint, tokens, (model.logits(tokens), model.integers)[1])
                   - model.logits(tokens))  # fmt: skip
    monkeypatch.setattr(checkpoint, "_shape", replace(checkpoint.shape, rope_scaling=wrong))
    off = np.abs(reference.forward(checkpoint, tokens) - model.logits(tokens))
    assert np.median(off[-8:]) > 20 * TOLERANCE + 2 * np.median(close[-8:])


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        *(("hunyuan", fault) for fault in ({"qk_norm_after_rope": False}, {"qk_norm": False}, {"rope_theta": 1e4})),
        *(("minicpm", fault) for fault in ({"embedding_scale": 1.0}, {"residual_scale": 1.0}, {"logit_divisor": 1.0})),
    ],
    ids=str,
)
def test_a_wrong_number_of_these_models_is_noticed(
    name: str, fault: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = hf_models.save(MODELS[name], tmp_path)
    checkpoint, model = HfCheckpoint(directory), Torch(directory)
    tokens = prompts(1, 24)[0]
    want = model.logits(tokens)
    close = np.abs(reference.forward(checkpoint, tokens) - want)
    monkeypatch.setattr(checkpoint, "_shape", replace(checkpoint.shape, **fault))
    off = np.abs(reference.forward(checkpoint, tokens) - want)
    assert np.median(off[-8:]) > 20 * TOLERANCE + 2 * np.median(close[-8:])


def test_norms_that_are_stored_less_one(embedding: tuple[HfCheckpoint, Torch], monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, model = embedding
    monkeypatch.setattr(checkpoint, "_family", replace(checkpoint._family, gain_offset=0.0))
    tokens = prompts(1, 24)[0]
    assert np.median(np.abs(reference.forward(checkpoint, tokens) - model.logits(tokens))) > 100 * TOLERANCE


# ---- the runtime ----


@pytest.mark.parametrize("name", [name for name in MODELS if "embedding" in name])
def test_embeddings(name: str, tmp_path: Path) -> None:
    """Texts to vectors as transformers makes them: the last token's state, of length one."""
    directory = hf_models.save(MODELS[name], tmp_path / "tiny")
    convert(directory, tmp_path / "m.gguf")
    model, oracle = Model.load(tmp_path / "m.gguf"), Torch(directory)
    texts = ["aba", "ebe obo ubu", "a" * 60 + "x", "bab cec did"]
    for text, vector in zip(texts, model.embed(texts), strict=True):
        with torch.no_grad():
            states = oracle.model.model(torch.tensor([model.tokenizer.encode(text)])).last_hidden_state[0]
        want = torch.nn.functional.normalize(states[-1], dim=0).numpy()
        assert vector @ want > 0.9995
        assert vector @ torch.nn.functional.normalize(states[0], dim=0).numpy() < 0.99


def test_runtime(tiny: tuple[Path, Torch], tmp_path: Path, record_property: Record) -> None:
    """Directory -> GGUF -> generated kernels -> logits, by prefill; then greedy tokens, by decode."""
    directory, oracle = tiny
    convert(directory, tmp_path / "m.gguf")
    check_runtime(Model.load(tmp_path / "m.gguf"), oracle, prompts(1, 6)[0], record_property)


def check_runtime(model: Model, oracle: Torch | OneBitLLM, prompt: list[int], record: Record) -> None:
    """Logits of short prompts to 1e-3; on a long one, the greedy tokens, and all logits but for roundings."""
    off = differences(lambda tokens: model.logits(tokens, cache="f32"), oracle, model.shape.vocab)
    close = off < 1e-3
    record(RUNTIME, f"{off[close].max(initial=0):.1e} on {close.sum()} of {len(off)} prompts, {off.max():.1e} on all")
    assert agree(off)
    new = greedy(model, prompt, 20)
    want = oracle.logits(prompt + new)
    spread = float(want.std())
    assert np.abs(model.logits(prompt + new, cache="f32") - want).max() < 0.3 * spread
    assert follows(new, want[len(prompt) - 1 : -1], flip=0.2 * spread)


def greedy(model: Model, prompt: list[int], steps: int) -> list[int]:
    """The runtime's greedy continuation, one token at a time."""
    new: list[int] = []
    with model.session(cache="f32") as session:
        logits = session.forward(prompt)
        for _ in range(steps):
            new.append(int(logits.argmax()))
            logits = session.forward(new[-1:])
    return new


@pytest.mark.skipif(not shipped_path().is_file(), reason="the model that ships is not in this checkout")
def test_the_model_that_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Record) -> None:
    """Its GGUF, taken apart here by plain code and packed for transformers."""
    directory = unpack_gguf(shipped_path(), tmp_path)
    model, oracle = Model.load(), Torch(directory)
    prompt = model.tokenizer.encode("Once upon a time")
    new = oracle.greedy(prompt, 20)
    want = oracle.logits(prompt + new)
    got = reference_logits(monkeypatch, read_gguf(shipped_path()), prompt + new, oracle.integers)
    record_property(LARGEST, f"{np.abs(got - want).max():.1e}")
    assert np.abs(got - want).max() < 1e-3
    assert follows(new, got[len(prompt) - 1 : -1])
    check_runtime(model, oracle, prompt, record_property)


MODULES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "attn_sub_norm": "self_attn.attn_sub_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_sub_norm": "mlp.ffn_sub_norm",
}


def unpack_gguf(path: Path, directory: Path) -> Path:
    """A tied bitnet-b1.58 GGUF of I2_S matrices as a packed Hugging Face directory."""
    file, tensors = Container(path), {}
    for name, tensor in file.tensors.items():
        *block, part, _ = name.split(".")
        module = f"model.layers.{block[1]}.{MODULES[part]}" if block else MODULES[part]
        raw = np.array(file.bytes_of(tensor))
        if tensor.type_name == "I2_S":
            codes, scale = i2_s(raw, tensor.shape)
            tensors[f"{module}.weight"] = hf_models.pack(torch.from_numpy(codes))
            tensors[f"{module}.weight_scale"] = torch.from_numpy(scale)
        else:
            values = raw.view({"F32": "<f4", "F16": "<f2"}[tensor.type_name]).reshape(tensor.shape)
            tensors[f"{module}.weight"] = torch.from_numpy(values.astype(np.float32))
    prefix = file.metadata["general.architecture"] + "."
    keys = {key.removeprefix(prefix): value for key, value in file.metadata.items()}
    sizes = {
        "hidden": keys["embedding_length"],
        "inter": keys["feed_forward_length"],
        "layers": keys["block_count"],
        "heads": keys["attention.head_count"],
        "kv_heads": keys["attention.head_count_kv"],
        "head_dim": keys["rope.dimension_count"],
        "eps": keys["attention.layer_norm_rms_epsilon"],
        "theta": keys["rope.freq_base"],
    }
    extra = {"vocab_size": keys["vocab_size"], "max_position_embeddings": keys["context_length"]}
    hf_models.save_config(replace(BITNET, extra=extra, **sizes), directory)
    hf_models.save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def i2_s(raw: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Codes [M, K] and scale [1]: in each 32 bytes, 128 weights, 32 to a bit pair, the first in the top pair."""
    m, k = shape
    blocks = raw[: m * k // 4].reshape(-1, 32)
    codes = np.concatenate([(blocks >> shift) & 3 for shift in (6, 4, 2, 0)], axis=1)
    return codes.reshape(m, k).astype(np.int64) - 1, raw[m * k // 4 :][:4].view("<f4")


# ---- the custom code of the 1bitLLM models, which transformers does not have ----


class OneBitLLM:
    """Logits by the equations of bitnet_b1_58-large's modeling code, with RoPE as a complex product."""

    def __init__(self, tiny: Tiny) -> None:
        self.tiny = tiny
        self.tensors = {name: t.float() for name, t in hf_models.random_tensors(tiny).items()}
        self.integers: list[np.ndarray] = []

    def logits(self, tokens: Any) -> np.ndarray:
        self.integers.clear()
        embedding = self.tensors["model.embed_tokens.weight"]
        x = embedding[torch.tensor(tokens)]
        for n in range(self.tiny.layers):
            at = f"model.layers.{n}."
            x = x + self.attend(at + "self_attn.", self.norm(at + "input_layernorm", x))
            x = x + self.feed_forward(at + "mlp.", self.norm(at + "post_attention_layernorm", x))
        head = embedding if self.tiny.tied else self.tensors["lm_head.weight"]
        return (self.norm("model.norm", x) @ head.T).numpy()

    def attend(self, at: str, h: Any) -> Any:
        n, tiny = len(h), self.tiny
        q, k, v = (self.linear(f"{at}{p}_proj", h).view(n, -1, tiny.head_dim).transpose(0, 1) for p in "qkv")
        q, k = self.turn(q), self.turn(k)
        k, v = (t.repeat_interleave(tiny.heads // tiny.kv_heads, dim=0) for t in (k, v))
        y = torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]
        return self.linear(at + "o_proj", self.norm(at + "inner_attn_ln", y.transpose(0, 1).reshape(n, -1)))

    def feed_forward(self, at: str, h: Any) -> Any:
        inner = torch.nn.functional.silu(self.linear(at + "gate_proj", h)) * self.linear(at + "up_proj", h)
        return self.linear(at + "down_proj", self.norm(at + "ffn_layernorm", inner))

    def turn(self, x: Any) -> Any:
        """Components i and i + D/2 as the real and imaginary part of a number turned by p theta^(-2i/D)."""
        real, imaginary = x.chunk(2, dim=-1)
        frequency = self.tiny.theta ** (-torch.arange(real.shape[-1]) / real.shape[-1])
        angle = torch.arange(x.shape[1])[:, None] * frequency
        turned = torch.complex(real, imaginary) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat([turned.real, turned.imag], dim=-1)

    def norm(self, module: str, x: Any) -> Any:
        return self.tensors[module + ".weight"] * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.tiny.eps)

    def linear(self, module: str, x: Any) -> Any:
        self.integers.append(int8(x))
        x_scale = 127 / x.abs().max(dim=-1, keepdim=True).values.clamp(min=1e-5)
        w = self.tensors[module + ".weight"]
        w_scale = 1 / w.double().abs().mean().float().clamp(min=1e-5)  # in float the mean hangs on the order of sums
        w = (w * w_scale).round().clamp(-1, 1) / w_scale
        return ((x * x_scale).round().clamp(-128, 127) / x_scale) @ w.T


ONE_BIT = Tiny("BitnetForCausalLM", "custom", act="silu")
ONEBIT = {  # the widths of an FFN and a head are those of the models
    "large": replace(ONE_BIT, inter=4096, hidden=384, heads=4, kv_heads=4, head_dim=96),
    "xl": replace(ONE_BIT, inter=5460, layers=1, kv_heads=4, seed=2),
    "3B": replace(ONE_BIT, inter=8640, layers=1, heads=2, head_dim=100, seed=3),
    "untied-f16": replace(ONE_BIT, tied=False, dtype=torch.float16, seed=1),
}


@pytest.mark.parametrize("model", ONEBIT.values(), ids=ONEBIT)
def test_1bitllm(model: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Record) -> None:
    checkpoint = HfCheckpoint(hf_models.save(model, tmp_path))
    check_logits(checkpoint, OneBitLLM(model), monkeypatch, record_property)
    convert(tmp_path, tmp_path / "m.gguf")
    again, tokens = read_gguf(tmp_path / "m.gguf"), prompts(1, 6)[0]
    assert again.shape.activation == "silu"
    assert (reference.forward(again, tokens) == reference.forward(checkpoint, tokens)).all()
    check_runtime(Model.load(tmp_path / "m.gguf"), OneBitLLM(model), tokens, record_property)
