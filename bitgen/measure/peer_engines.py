"""Other engines behind one interface, each in a process of its own: `python -m bitgen.measure.peer_engines llama.cpp`.

The process answers lines of JSON on stdin with lines on stdout, one each, and ends with its input:

    {"prepare": GGUF, "to": GGUF}                      -> {"ready": true}
    {"open": GGUF, "threads": T, "context": C}         -> {"about": "what runs, in words"}
    {"run": [[token, ...], ...], "logits": true}       -> {"seconds": s, "finite": true, "logits": [...]}

"prepare" turns a model that bitgen reads into one that the engine reads. "run" begins with an empty cache and
appends each list with one call of the engine; only those calls are timed; the logits are the last call's.
What goes wrong is answered by {"error": text}.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bitgen.checkpoints.checkpoint import ALL, Checkpoint, Scale
from bitgen.errors import BitgenError, EngineError, UnsupportedError
from bitgen.gguf.container import Container
from bitgen.gguf.reader import read_gguf
from bitgen.gguf.writer import FILE_TYPES, default_type, write_gguf
from bitgen.spec import ModelShape


class Engine(Protocol):
    """What a peer must do to be compared."""

    about: str

    def __init__(self, path: Path, threads: int, context: int) -> None:
        """Open a prepared model."""

    @staticmethod
    def prepare(source: Path, to: Path) -> None:
        """Write `source` in the form the engine reads."""

    def clear(self) -> None:
        """Forget all tokens."""

    def append(self, tokens: list[int]) -> npt.NDArray[np.float32]:
        """Append tokens; logits [vocab] after the last, good until the next call."""


# ---- llama.cpp ----------------------------------------------------------------------------------------------


Q2_0_GROUP = 64
"""Weights of a block of llama.cpp's Q2_0, which has no larger ones: a scale for every 128 stands there twice."""


class ForLlama:
    """A checkpoint as llama.cpp reads it: its own name for the architecture, groups of its blocks, no tokenizer."""

    def __init__(self, inner: Checkpoint) -> None:
        self._inner = inner

    @cached_property
    def shape(self) -> ModelShape:
        """Mainline knows one BitNet: "bitnet", whose head is the embedding and whose FFN is SiLU."""
        s = self._inner.shape
        if s.group % 256 and not s.binary:
            s = replace(s, group=Q2_0_GROUP)
        if not s.sub_norms:
            return s
        if not s.tied or s.heads * s.head_dim != s.hidden:
            raise UnsupportedError(
                "llama.cpp's bitnet has its embedding for a head, and heads that add up to the hidden size"
            )
        return replace(s, architecture="bitnet", activation="silu")

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Only ids are exchanged."""
        return {"tokenizer.ggml.model": "no_vocab"}

    @property
    def type(self) -> str:
        """Of its matrices in a file."""
        if self.shape.binary:
            return default_type(self.shape)
        return "q2_0" if self.shape.group == Q2_0_GROUP else "tq2_0"

    def ternary(self, name: str) -> tuple[npt.NDArray[np.int8], Scale]:
        """The same weights."""
        codes, scale = self._inner.ternary(name)
        return codes, self._repeated(scale) if isinstance(scale, np.ndarray) else scale

    def ternary_rows(self, name: str, rows: slice) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
        """The same weights."""
        codes, scales = self._inner.ternary_rows(name, rows)
        return codes, self._repeated(scales)

    def _repeated(self, scales: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Each scale as often as blocks of its group."""
        return np.repeat(scales, self._inner.shape.group // self.shape.group, axis=1)

    def dense(self, name: str, rows: slice = ALL) -> npt.NDArray[np.floating[Any]]:
        """As it is."""
        return self._inner.dense(name, rows)


class LlamaCpp:
    """llama.cpp through llama-cpp-python, its matrices TQ2_0, or Q2_0 or Q1_0 where groups of weights have scales.

    Its head is q6_K, as its quantiser makes it, or of the matrices' type where it is ternary too.
    """

    def __init__(self, path: Path, threads: int, context: int) -> None:
        self._api = api = _llama_api()
        params = api.llama_model_default_params()
        params.n_gpu_layers = 0
        self._model = api.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise EngineError(f"llama.cpp cannot load {path}")
        settings = api.llama_context_default_params()
        settings.n_ctx, settings.n_batch = context, max(context, settings.n_ubatch)
        settings.n_threads = settings.n_threads_batch = threads
        self._context = api.llama_init_from_model(self._model, settings)
        if not self._context:
            raise EngineError(f"llama.cpp cannot make a context of {context} tokens")
        self._vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        names = {known.file_type: name.upper() for name, known in FILE_TYPES.items()}
        file = Container(path)
        type, tensors = names[file.metadata["general.file_type"]], file.tensors
        head = tensors.get("output.weight", tensors["token_embd.weight"]).type_name
        self.about = f"llama-cpp-python {version('llama-cpp-python')}, {type}, {head} head, f16 cache"

    @staticmethod
    def prepare(source: Path, to: Path) -> None:
        """Matrices by bitgen's writer; embedding and head, unless ternary, to q6_K by llama.cpp's own quantiser."""
        api, f16_head, checkpoint = _llama_api(), to.with_name(f".{to.name}.f16-head"), ForLlama(read_gguf(source))
        if checkpoint.shape.ternary_embedding and checkpoint.shape.ternary_head:
            write_gguf(to, checkpoint, checkpoint.type)
            return
        try:
            write_gguf(f16_head, checkpoint, checkpoint.type)
            params = api.llama_model_quantize_default_params()
            params.ftype = getattr(api, f"LLAMA_FTYPE_MOSTLY_{checkpoint.type.upper()}")
            params.token_embedding_type = params.output_tensor_type = api.GGML_TYPE_Q6_K
            if api.llama_model_quantize(str(f16_head).encode(), str(to).encode(), ctypes.byref(params)):
                raise EngineError("llama.cpp cannot quantise the head to q6_K")
        finally:
            f16_head.unlink(missing_ok=True)

    def clear(self) -> None:
        """Forget all tokens."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), False)

    def append(self, tokens: list[int]) -> npt.NDArray[np.float32]:
        """One call of llama_decode."""
        ids = (ctypes.c_int32 * len(tokens))(*tokens)
        if self._api.llama_decode(self._context, self._api.llama_batch_get_one(ids, len(tokens))):
            raise EngineError(f"llama.cpp cannot append {len(tokens)} tokens")
        return np.ctypeslib.as_array(self._api.llama_get_logits_ith(self._context, -1), (self._vocab,))


def _llama_api() -> Any:
    import llama_cpp.llama_cpp as api

    api.llama_backend_init()
    return api


# ---- Litespark ----------------------------------------------------------------------------------------------

_PARTS = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}
_NORMS = {
    "input_norm": "attn_norm",
    "post_attn_norm": "ffn_norm",
    "attn_sub_norm": "attn_sub_norm",
    "ffn_sub_norm": "ffn_sub_norm",
}


class Litespark:
    """Litespark's torchless runtime, with the int4 head and bf16 norms that its loader makes."""

    def __init__(self, path: Path, threads: int, context: int) -> None:
        from litespark_inference.torchless import kernel, loader, runtime
        from litespark_inference.torchless import model as parts

        source = read_gguf(path)
        s = source.shape
        if not (s.sub_norms and s.tied and s.activation == "relu2" and s.heads * s.head_dim == s.hidden):
            raise UnsupportedError("Litespark's BitNet has relu2, sub-norms, and its embedding for a head")

        def projection(name: str) -> Any:
            codes, scale = source.ternary(name)
            packed = loader.pack_ternary_4_per_byte(codes)
            return parts.PackedProjection(packed, codes.sum(1, dtype=np.int32), scale, codes.shape[1], codes.shape[0])

        def layer(n: int) -> Any:
            matrices = {key: projection(f"blk.{n}.{name}.weight") for key, name in _PARTS.items()}
            norms = {key: _to_bf16(source.dense(f"blk.{n}.{name}.weight")) for key, name in _NORMS.items()}
            return parts.PackedLayer(**matrices, **norms)

        embedding, scales = loader._quantize_embedding_int4(_to_bf16(source.dense("token_embd.weight")))
        sizes = (s.hidden, s.layers, s.heads, s.kv_heads, s.intermediate, s.vocab, s.context, s.norm_eps, s.rope_theta)
        self._model = parts.PackedBitNetModel(
            config=parts.BitNetConfig(*sizes),
            embed_tokens=None,
            final_norm=_to_bf16(source.dense("output_norm.weight")),
            layers=[layer(n) for n in range(s.layers)],
            embed_int4=embedding,
            embed_scale=scales,
        )
        self._runtime, self._state = runtime, runtime.init_state(self._model, context)
        self.about = (
            f"litespark-inference {version('litespark-inference')}, {kernel._ARCH_TAG} kernels, int4 head, f32 cache"
        )

    @staticmethod
    def prepare(source: Path, to: Path) -> None:
        """Nothing to write: the weights are packed when the model opens."""
        to.symlink_to(source.resolve())

    def clear(self) -> None:
        """Forget all tokens."""
        self._state.pos = 0

    def append(self, tokens: list[int]) -> npt.NDArray[np.float32]:
        """One call of forward_one or forward_prefill, as Litespark's own generate does."""
        step: npt.NDArray[np.float32] = (
            self._runtime.forward_one(self._model, self._state, tokens[0])
            if len(tokens) == 1
            else self._runtime.forward_prefill(self._model, self._state, tokens)
        )
        return step


def _to_bf16(values: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.uint16]:
    """Rounded to bfloat16, whose bits Litespark keeps in uint16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


# ---- the process --------------------------------------------------------------------------------------------

ENGINES: dict[str, type[Engine]] = {"llama.cpp": LlamaCpp, "litespark": Litespark}


def run(engine: Engine, calls: Sequence[list[int]]) -> tuple[float, npt.NDArray[np.float32]]:
    """Seconds of the calls from an empty cache, and the last one's logits."""
    engine.clear()
    started = time.perf_counter()
    for tokens in calls:
        logits = engine.append(tokens)
    return time.perf_counter() - started, logits


def answer(request: Mapping[str, Any], kind: type[Engine], opened: list[Engine]) -> dict[str, Any]:
    """The answer to one request; `opened` holds the engine that the latest "open" made."""
    if "prepare" in request:
        kind.prepare(Path(request["prepare"]), Path(request["to"]))
        return {"ready": True}
    if "open" in request:
        opened[:] = [kind(Path(request["open"]), request["threads"], request["context"])]
        return {"about": opened[0].about}
    seconds, logits = run(opened[0], request["run"])
    told = {"logits": logits.tolist()} if request.get("logits") else {}
    return {"seconds": seconds, "finite": bool(np.isfinite(logits).all()), **told}


def serve(kind: type[Engine]) -> None:
    """Answer requests until there are no more. What the engine itself prints goes to stderr."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    opened: list[Engine] = []
    for line in sys.stdin:
        try:
            told = answer(json.loads(line), kind, opened)
        except BitgenError as e:
            told = {"error": str(e)}
        except Exception as e:  # whatever a foreign engine raises is its answer
            told = {"error": f"{type(e).__name__}: {e}"}
        print(json.dumps(told), file=out, flush=True)


if __name__ == "__main__":
    serve(ENGINES[sys.argv[1]])
