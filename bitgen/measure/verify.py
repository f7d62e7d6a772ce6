"""`bitgen verify`: checks a model and its kernels on this machine, and writes a receipt of what was checked.

    files       the packed model and the libraries in the cache, byte by byte
    kernels     every kernel that the model may run with, of every format, at every level this CPU executes,
                against the oracle's integers: random weights, and those with the largest sums
    same bits   logits of every level, format, thread count and chunking, compared with ==
    choices     the certified head's tokens against those of all logits
    reference   logits against the NumPy reference
    against     logits and perplexity against transformers in float32, where a checkpoint is given

Levels and formats of a large model are compared on a cut of it, a few layers and the first rows of its vocabulary,
which has every matrix shape of the whole. All other checks run the model itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitgen import data
from bitgen.checkpoints import reference
from bitgen.checkpoints.checkpoint import ALL, Checkpoint
from bitgen.compile import binding, checksum, clang, library, pack
from bitgen.compile.clang import BuildOptions
from bitgen.engine.model import Model
from bitgen.engine.sampling import NEUTRAL
from bitgen.errors import BitgenError, UnsupportedError
from bitgen.gguf.reader import read_gguf
from bitgen.kernels import plan, space
from bitgen.kernels.plan import ModelPlan
from bitgen.measure import receipt as receipts
from bitgen.measure.receipt import Check, Receipt
from bitgen.spec import GemmShape, KernelSpec, Listener, MatrixPlan, ModelShape
from bitgen.tune.bands import random_codes
from bitgen.tune.lab import VERIFY_TOKENS, Trial, differs

Ints = npt.NDArray[np.int8]
Logits = Callable[[list[int]], npt.NDArray[np.float32]]  # of token ids, [n, vocab]

CUT_WEIGHTS, CUT_VOCAB = 200_000_000, 8192
"""Ternary weights of a cut, about, and its tokens; a model with fewer weights is compared whole."""
TOKENS, PROMPTS = 24, 16
"""Tokens of the prompt that levels are compared on; number of prompts of two tokens that meet the reference."""
NEAR, ROUNDED = 1e-3, 0.3
"""Standard deviations by which logits may be off: NEAR where all activations round alike, ROUNDED where one lies in the
middle between two integers, since float noise decides which way it rounds (docs/architecture.md, Proof)."""
MIN_NEAR = 0.6
"""Fraction of prompts that must be NEAR. In a model of many layers nearly every prompt meets such a rounding, so there
the fraction is 0: a wrong model exceeds ROUNDED, and smaller faults show in its cut or its perplexity."""
PERPLEXITY = 5e-3
"""Largest difference of the logarithm of the perplexity from that of transformers: roundings average out."""


def verify(path: Path, against: str | None = None, listener: Listener = lambda *_: None, **reading: Any) -> Receipt:
    """Verify a GGUF file's model with every ISA level that this CPU executes.

    against: "hf:DIR", a transformers checkpoint of the same model. reading: the options of read_gguf.
    A comparison that fails is a Check that is not ok; an error means that nothing could be compared (a file that cannot
    be read, no compiler, no torch). The listener is told of each stage before it begins.
    """
    listener("reading the model", 0, 0)
    checkpoint = read_gguf(path, **reading)
    if against is not None:
        listener("loading the checkpoint with transformers", 0, 0)
    theirs = _transformers(against) if against is not None else None
    plans = [plan.of_model(checkpoint.shape, isa) for isa in library.host_isas(listener)]
    artefact = library.for_model(checkpoint.shape, plans, BuildOptions(listener=listener))
    receipt = Receipt(receipts.machine(), receipts.model(checkpoint, listener), receipts.levels(plans, artefact))
    model = Model.load(path, progress=listener, **reading)
    stages: list[Iterator[Check]] = [
        _files(model.packed, listener),
        _kernels(checkpoint.shape, plans, listener),
        _same_bits(cut(checkpoint), plans, listener),
        _self_consistency(model, listener),
        _whole_model(model, checkpoint, listener),
    ]
    if against is not None and theirs is not None:
        stages.append(_against(model, against, theirs, listener))
    for stage in stages:
        started = time.perf_counter()
        for check in stage:
            now = time.perf_counter()
            receipt.checks.append(replace(check, seconds=round(now - started, 3)))
            started = now
    return receipt


# ---- files --------------------------------------------------------------------------------------------------


def _files(packed: Path, listener: Listener) -> Iterator[Check]:
    """What lies in the cache, read in full: the samples that are compared at every start may all be sound."""
    listener("reading the packed model in the cache", 0, 0)
    sound = checksum.is_sound(packed, whole=True)
    if not sound:
        packed.unlink(missing_ok=True)
    yield _file(packed, sound, f"{packed.stat().st_size if sound else 0} bytes")
    specs = sorted(data.cached("build").glob("*/spec.json"))
    for done, spec in enumerate(specs):
        listener("reading the libraries in the cache", done, len(specs))
        if b'"sha256"' in spec.read_bytes():  # without it a library is never loaded
            yield _file(spec.parent, clang.opened(spec.parent) is not None, "libraries as built")


def _file(path: Path, sound: bool, detail: str) -> Check:
    return Check("files", path.name, sound, detail if sound else "damaged: it is made anew when it is needed next")


# ---- kernels ------------------------------------------------------------------------------------------------


def _kernels(shape: ModelShape, plans: Sequence[ModelPlan], listener: Listener) -> Iterator[Check]:
    """Every kernel of the plans, and the first legal plan of every other format, at every level.

    Of a head those of its `space.trial_shape`.
    """
    roles = {role: space.trial_shape(gemm) for role, gemm in shape.all_matrices.items()}
    matrices = list(dict.fromkeys(roles.values()))
    rng = np.random.default_rng(0)
    codes = {m: random_codes(m, rng) for m in matrices}
    for at in plans:
        planned = [s for role, p in at.matrices.items() for s in p.specs(roles[role], at.isa)]
        others = [s for m in matrices for p in _formats(m, at.isa) for s in p.specs(m, at.isa)]
        specs = list(dict.fromkeys([*planned, *others]))
        options = BuildOptions(listener=listener, stage=f"compiling {at.isa} kernels")
        built = library.for_kernels(at.isa, specs, options)
        lib = binding.load(built.path)
        isa = library.isa_index(lib, at.isa)
        for index, spec in enumerate(specs):
            listener(f"checking {at.isa} kernels", index, len(specs))
            wrong = kernel_differs(lib, isa, index, spec, codes[spec.shape])
            yield Check("kernels", spec.symbol, not wrong, wrong or "equal to the oracle")


def _formats(shape: GemmShape, isa: str) -> Iterator[MatrixPlan]:
    """The first legal plan of each format that has a template of its own at a level (at scalar: of all)."""
    seen = set[str]()
    for layout in space.candidate_layouts(shape, isa):
        if layout.format not in seen:
            seen.add(layout.format)
            tiles = (space.candidate_tiles(op, shape, isa, layout) for op in ("gemv", "gemm"))
            gemv, gemm = (found[0] for found in tiles)
            yield MatrixPlan(layout, gemv, gemm)


def kernel_differs(lib: Any, isa: int, index: int, spec: KernelSpec, codes: Ints) -> str:
    """Run a kernel on random weights and on those with the largest sums; "" or where it differs from the oracle."""
    for name, weights in (("random", codes), ("all +1", np.ones_like(codes)), ("all -1", -np.ones_like(codes))):
        trial = Trial(spec.shape, weights, VERIFY_TOKENS[spec.op], seed=spec.shape.k)
        if found := differs(lib, isa, index, spec, trial, 2):
            return f"weights {name}: {found}"
    return ""


# ---- the same bits --------------------------------------------------------------------------------------------


class Cut:
    """The first layers of a checkpoint and the first rows of its vocabulary, with all of its matrix shapes."""

    def __init__(self, whole: Checkpoint, layers: int, vocab: int) -> None:
        self._whole, self.metadata = whole, whole.metadata
        self.shape = replace(whole.shape, name=f"{whole.shape.name}-cut", layers=layers, vocab=vocab)

    def ternary(self, name: str) -> Any:
        """As the whole checkpoint has it."""
        return self._whole.ternary(name)

    def ternary_rows(self, name: str, rows: slice) -> tuple[Ints, npt.NDArray[np.float32]]:
        """The first rows of embedding and head."""
        return self._whole.ternary_rows(name, slice(*rows.indices(self.shape.vocab)))

    def dense(self, name: str, rows: slice = ALL) -> npt.NDArray[np.floating[Any]]:
        """As the whole checkpoint has it; of embedding and head the first rows."""
        if name in ("token_embd.weight", "output.weight"):
            rows = slice(*rows.indices(self.shape.vocab))
        return self._whole.dense(name, rows)


def cut(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint itself, or a cut of about CUT_WEIGHTS weights where it has more."""
    s = checkpoint.shape
    one_of_each = s.delta.period if s.delta else 1
    layers = min(s.layers, max(one_of_each, CUT_WEIGHTS * s.layers // s.ternary_weights))
    return checkpoint if layers == s.layers else Cut(checkpoint, layers, min(s.vocab, CUT_VOCAB))


def _same_bits(checkpoint: Checkpoint, plans: Sequence[ModelPlan], listener: Listener) -> Iterator[Check]:
    """Logits [TOKENS, vocab] of every level and format, against those of the first, which meet the reference."""
    shape = checkpoint.shape
    head: pack.Head = "certified" if shape.ternary_head else "f16"  # as it is: its kernels are compared too
    tokens = _prompts(shape.vocab, 1, TOKENS)[0]
    first: npt.NDArray[np.float32] | None = None
    with data.scratch() as folder:
        for at in plans:
            for name, planned in _plans_to_check(shape, at):
                packed, level = folder / "model.bgpk", f"{at.isa}, {name}"
                pack.write(packed, checkpoint, planned, head, partial(listener, f"packing for {level}"))
                options = BuildOptions(listener=listener, stage=f"compiling kernels for {level}")
                built = library.for_model(shape, [planned], options)
                model = Model(packed, shape, _NO_TOKENIZER, planned, built, packed, head, 2)
                listener(f"computing logits on {level}", 0, 0)
                logits = model.logits(tokens)
                if first is None:
                    first = logits
                    listener("comparing with the NumPy reference", 0, 0)
                    yield _reference(model, checkpoint, "NumPy", MIN_NEAR)
                del model
                yield _equal("same bits", level, logits, first)


_NO_TOKENIZER: Any = None  # a cut model is asked for logits only


def _plans_to_check(shape: ModelShape, at: ModelPlan) -> Iterator[tuple[str, ModelPlan]]:
    """The plan of a level, then one for each format that all matrices can take."""
    yield "as planned", at
    roles: dict[str, dict[str, MatrixPlan]] = {}
    for role, matrix in shape.all_matrices.items():
        for choice in _formats(matrix, at.isa):
            roles.setdefault(choice.layout.format, {})[role] = choice
    for name, matrices in roles.items():
        if len(matrices) == len(shape.all_matrices):
            yield name, replace(at, matrices=matrices)


def _self_consistency(model: Model, listener: Listener) -> Iterator[Check]:
    """The model as it is: the same logits at every thread count and chunk size, and the head's choices from them."""
    listener("computing logits with other numbers of threads and tokens", 0, 0)
    tokens = _prompts(model.shape.vocab, 1, TOKENS)[0]
    first = model.logits(tokens)
    yield Check("same bits", "finite", bool(np.isfinite(first).all()), "no NaN and no infinity in the logits")
    for threads in (1, 2, 3):
        with model.session(threads, context=TOKENS) as session:
            yield _equal("same bits", f"{threads} threads", session.forward(tokens, every=True), first)
    for size in (1, 5):
        with model.session(context=TOKENS) as session:
            parts = [session.forward(tokens[i : i + size], every=True) for i in range(0, TOKENS, size)]
            yield _equal("same bits", f"{size} tokens at a time", np.concatenate(parts), first)
    listener("comparing the head's choices with all logits", 0, 0)
    samplings = {"greedy": replace(NEUTRAL, temperature=0.0), "top-k 40": replace(NEUTRAL, top_k=40, seed=7)}
    for name, sampling in samplings.items():
        with model.session(context=TOKENS) as session:
            chosen = session.next(tokens, sampling, tokens, 0, TOKENS)
            wanted = [session.sample(sampling, row, tokens[: i + 1], i) for i, row in enumerate(first)]
        yield Check("choices", f"{model.head} head, {name}", chosen == wanted, f"{TOKENS} tokens as from all logits")


def _equal(group: str, subject: str, got: npt.NDArray[np.float32], want: npt.NDArray[np.float32]) -> Check:
    off = int((got != want).sum())
    return Check(group, subject, off == 0, f"{off} of {want.size} logits differ" if off else "the same bits")


# ---- the right model ------------------------------------------------------------------------------------------


def _prompts(vocab: int, count: int, length: int) -> list[list[int]]:
    rng = np.random.default_rng(length)
    return [rng.integers(0, vocab, length).tolist() for _ in range(count)]


def _reference(model: Model, checkpoint: Checkpoint, subject: str, min_near: float) -> Check:
    """PROMPTS prompts against the NumPy reference, which reads the weights once for all of them."""
    prompts = _prompts(model.shape.vocab, PROMPTS, 2)
    wanted = reference.forward_many(checkpoint, prompts)
    return _agreement("reference", subject, [model.logits(p, cache="f32") for p in prompts], wanted, min_near)


def _whole_model(model: Model, checkpoint: Checkpoint, listener: Listener) -> Iterator[Check]:
    """All layers of a model that was compared in a cut; through so many, nearly every prompt meets a rounding."""
    if cut(checkpoint) is not checkpoint:
        listener("comparing all layers with the NumPy reference", 0, 0)
        yield _reference(model, checkpoint, "NumPy, all layers", 0)


def _agreement(
    group: str,
    subject: str,
    got: Sequence[npt.NDArray[np.float32]],
    want: Sequence[npt.NDArray[np.float32]],
    min_near: float,
) -> Check:
    """At least a fraction min_near of the prompts is NEAR, and none is off by more than ROUNDED."""
    off = np.array([np.abs(g - w).max() / w.std() for g, w in zip(got, want, strict=True)])
    near = float((off < NEAR).mean())
    detail = f"{near:.0%} of {len(off)} prompts within {NEAR:g} standard deviations, the worst {off.max():.2g}"
    return Check(group, subject, bool(near >= min_near and off.max() < ROUNDED), detail)


def _against(model: Model, source: str, theirs: Logits, listener: Listener) -> Iterator[Check]:
    """Logits and perplexity of transformers in float32, from a checkpoint of the same model."""
    listener("comparing with transformers", 0, 0)
    prompts = _prompts(model.shape.vocab, PROMPTS, 2)
    want = [theirs(p) for p in prompts]
    near = MIN_NEAR if model.ternary_weights <= CUT_WEIGHTS else 0
    yield _agreement("against", source, [model.logits(p, cache="f32") for p in prompts], want, near)
    text = _prompts(model.shape.vocab, 1, min(128, model.shape.context))[0]
    ours, other = (_mean_logprob(logits, text) for logits in (model.logits(text, cache="f32"), theirs(text)))
    detail = f"perplexity {np.exp(-ours):.4f} here, {np.exp(-other):.4f} there"
    yield Check("against", f"{source}, perplexity of random tokens", bool(abs(ours - other) < PERPLEXITY), detail)


def _mean_logprob(logits: npt.NDArray[np.float32], ids: Sequence[int]) -> float:
    x = logits[:-1].astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    return float(np.mean(x[np.arange(len(x)), ids[1:]] - np.log(np.exp(x).sum(axis=-1))))


def _transformers(source: str) -> Logits:
    """Logits [n, vocab] of token ids by transformers in float32; source is "hf:" and a folder or a hub id."""
    if not source.startswith("hf:"):
        raise UnsupportedError(f"--against {source!r}: expected hf:DIR, a checkpoint that transformers can load")
    try:
        import torch
        import transformers
    except ImportError as e:
        raise BitgenError(f"--against needs {e.name}: pip install torch transformers accelerate") from None
    try:
        loaded = transformers.AutoModelForCausalLM.from_pretrained(
            source.removeprefix("hf:"), dtype=torch.float32, attn_implementation="eager"
        )
    except (OSError, ValueError, KeyError, ImportError) as e:
        raise BitgenError(f"transformers cannot load {source.removeprefix('hf:')}: {str(e).splitlines()[0]}") from None
    # Scales and unpacked weights are loaded in the type of the file, whatever dtype says.
    module: Any = torch.nn.Module.float(loaded)
    module.eval()

    def logits(ids: list[int]) -> npt.NDArray[np.float32]:
        with torch.no_grad():
            found: npt.NDArray[np.float32] = module(torch.tensor(ids)[None]).logits[0].numpy()
        return found

    return logits
