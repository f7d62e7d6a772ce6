"""`bitgen verify`: proves a build on this very machine, and writes down what was proved.

    kernels     every kernel that the model may run with, of every format, at every level this CPU executes,
                against the oracle's integers: random activations and those that overflow sums elsewhere
    same bits   logits of every level, format, thread count and chunking, compared with ==
    choices     the certified head's tokens against those of all logits
    reference   logits against the NumPy reference
    against     logits and perplexity against transformers in float32, where a checkpoint is given

A large model's matrices are all there in a few of its layers and rows of its vocabulary, so levels and formats are
compared on such a cut of it; the model as it is runs through the rest.
"""

from __future__ import annotations

import hashlib
import json
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitgen import data, targets
from bitgen.checkpoints import reference
from bitgen.checkpoints.checkpoint import ALL, Checkpoint
from bitgen.compile import binding, clang, library, pack
from bitgen.compile.clang import Artefact
from bitgen.engine.model import Model
from bitgen.engine.session import Sampling
from bitgen.errors import BitgenError, UnsupportedError
from bitgen.gguf.reader import read_gguf
from bitgen.kernels import plan, space
from bitgen.kernels.plan import Lookup
from bitgen.spec import GemmShape, KernelSpec, MatrixPlan, ModelShape
from bitgen.tune.lab import VERIFY_TOKENS, Trial, differs

Listener = Callable[[str, int, int], None]
Ints = npt.NDArray[np.int8]
Logits = Callable[[list[int]], npt.NDArray[np.float32]]  # of token ids, [n, vocab]

CUT_WEIGHTS, CUT_VOCAB = 200_000_000, 8192
"""A model of more ternary weights is compared in a cut of about so many, and of so many tokens."""
TOKENS, PROMPTS = 24, 16
"""Length of the prompts that levels are compared on; number of the short ones that meet the reference."""
NEAR, MOST = 1e-3, 0.3
"""Logits agree when off by less than NEAR standard deviations. A prompt in which an activation lies in the middle
between two integers may be off by up to MOST: which way it rounds is float noise (docs/architecture.md, Proof)."""
MOST_NEAR = 0.6
"""The share of prompts that must agree; the others met such a rounding. Nearly all do in a model of many layers, so
there none need agree: a wrong model is further off than MOST, and its cut or its perplexity tells smaller faults."""
PERPLEXITY = 5e-3
"""Most that the logarithm of the perplexity may differ from that of transformers: roundings average out."""


@dataclass(frozen=True)
class Check:
    """One verdict: what was compared, on what, and how it went."""

    group: str
    subject: str
    ok: bool
    detail: str
    seconds: float = 0.0


@dataclass
class Receipt:
    """What was verified, of which files, on which machine."""

    machine: Mapping[str, Any]
    model: Mapping[str, Any]
    levels: Mapping[str, Any]
    checks: list[Check] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything held, and something was tried."""
        return bool(self.checks) and all(check.ok for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """The receipt as plain data, the verdict first."""
        return {"verdict": "pass" if self.ok else "FAIL", **asdict(self)}


def verify(path: Path, against: str | None = None, listener: Listener = lambda *_: None, **reading: Any) -> Receipt:
    """Verify a GGUF file's model with every ISA level that this CPU executes.

    against: "hf:DIR", a transformers checkpoint of the same model. Failed comparisons are verdicts; errors are raised
    where nothing could be compared (a file that cannot be read, no compiler, no torch). reading: as read_gguf takes.
    """
    checkpoint = read_gguf(path, **reading)
    theirs = _transformers(against) if against is not None else None
    lookups = [plan.lookup(checkpoint.shape, isa) for isa in library.host_isas()]
    artefact = library.for_model(checkpoint.shape, lookups, progress=lambda d, t: listener("compiling", d, t))
    receipt = Receipt(_machine(), _model(path, checkpoint), _levels(lookups, artefact))
    model = Model.load(path, progress=listener, **reading)
    stages: list[Iterator[Check]] = [
        _kernels(checkpoint.shape, lookups, listener),
        _same_bits(cut(checkpoint), lookups, listener),
        _own_ways(model),
        _whole(model, checkpoint),
    ]
    if against is not None and theirs is not None:
        stages.append(_against(model, against, theirs))
    for stage in stages:
        started = time.perf_counter()
        for check in stage:
            now = time.perf_counter()
            receipt.checks.append(replace(check, seconds=round(now - started, 3)))
            listener(check.group, len(receipt.checks), 0)
            started = now
    return receipt


# ---- kernels ------------------------------------------------------------------------------------------------


def _kernels(shape: ModelShape, lookups: Sequence[Lookup], listener: Listener) -> Iterator[Check]:
    """Every kernel of the plans, and the first choice of every other format, at every level."""
    matrices = list(dict.fromkeys(shape.matrices.values()))
    rng = np.random.default_rng(0)
    codes = {m: rng.integers(-1, 2, (m.m, m.k), np.int8) for m in matrices}
    for at in lookups:
        planned = [s for role, p in at.matrices.items() for s in p.specs(shape.matrices[role], at.isa)]
        others = [s for m in matrices for p in _formats(m, at.isa) for s in p.specs(m, at.isa)]
        specs = list(dict.fromkeys([*planned, *others]))
        built = library.for_kernels(at.isa, specs, progress=lambda d, t, isa=at.isa: listener(f"compiling {isa}", d, t))
        lib = binding.load(built.path)
        isa = library.isa_index(lib, at.isa)
        for index, spec in enumerate(specs):
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
    """Run a kernel on random weights and on those that overflow sums; "" or how it differs from the oracle."""
    for name, weights in (("random", codes), ("all +1", np.ones_like(codes)), ("all -1", -np.ones_like(codes))):
        trial = Trial(spec.shape, weights, VERIFY_TOKENS[spec.op], seed=spec.shape.k)
        if found := differs(lib, isa, index, spec, trial, 2):
            return f"weights {name}: {found}"
    return ""


# ---- the same bits --------------------------------------------------------------------------------------------


class Cut:
    """The first layers of a checkpoint and the first rows of its vocabulary: small, with all of its shapes."""

    def __init__(self, whole: Checkpoint, layers: int, vocab: int) -> None:
        self._whole, self.metadata = whole, whole.metadata
        self.shape = replace(whole.shape, name=f"{whole.shape.name}-cut", layers=layers, vocab=vocab)

    def ternary(self, name: str) -> Any:
        """As the whole checkpoint has it."""
        return self._whole.ternary(name)

    def dense(self, name: str, rows: slice = ALL) -> npt.NDArray[np.floating[Any]]:
        """As the whole checkpoint has it; of embedding and head the first rows."""
        if name in ("token_embd.weight", "output.weight"):
            rows = slice(*rows.indices(self.shape.vocab))
        return self._whole.dense(name, rows)


def cut(checkpoint: Checkpoint) -> Checkpoint:
    """A model to compare levels on: the checkpoint itself, or where it is large a cut of it."""
    s = checkpoint.shape
    layer = sum(m.m * m.k for m in s.matrices.values())
    layers = max(1, min(s.layers, CUT_WEIGHTS // layer))
    return checkpoint if layers == s.layers else Cut(checkpoint, layers, min(s.vocab, CUT_VOCAB))


def _same_bits(checkpoint: Checkpoint, lookups: Sequence[Lookup], listener: Listener) -> Iterator[Check]:
    """Logits of every level and format; the first of them is what the others must be, and meets the reference."""
    shape = checkpoint.shape
    tokens = _prompts(shape.vocab, 1, TOKENS)[0]
    first: npt.NDArray[np.float32] | None = None
    with tempfile.TemporaryDirectory() as folder:
        for at in lookups:
            for name, how in _ways(shape, at):
                packed = Path(folder) / "model.bgpk"
                pack.write(packed, checkpoint, how, progress=lambda d, t: listener("packing", d, t))
                built = library.for_model(shape, [how], progress=lambda d, t: listener("compiling", d, t))
                model = Model(packed, shape, _NO_TOKENIZER, how, built, packed, "f16", 2)
                logits = model.logits(tokens)
                if first is None:
                    first = logits
                    yield _reference(model, checkpoint, "NumPy", MOST_NEAR)
                del model
                yield _equal("same bits", f"{at.isa}, {name}", logits, first)


_NO_TOKENIZER: Any = None  # a cut model is asked for logits only


def _ways(shape: ModelShape, at: Lookup) -> Iterator[tuple[str, Lookup]]:
    """The plan of a level, then each format for all matrices."""
    yield "as planned", at
    roles: dict[str, dict[str, MatrixPlan]] = {}
    for role, matrix in shape.matrices.items():
        for choice in _formats(matrix, at.isa):
            roles.setdefault(choice.layout.format, {})[role] = choice
    for name, matrices in roles.items():
        if len(matrices) == len(shape.matrices):
            yield name, replace(at, matrices=matrices)


def _own_ways(model: Model) -> Iterator[Check]:
    """The model as it is: thread counts, chunkings, caches of what was computed, and the certified head."""
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
    for name, how in (("greedy", Sampling(temperature=0)), ("top-k 40", Sampling(top_k=40, seed=7))):
        with model.session(context=TOKENS) as session:
            chosen = session.next(tokens, how, tokens, 0, TOKENS)
            wanted = [session.sample(how, row, tokens[: i + 1], i) for i, row in enumerate(first)]
        yield Check("choices", f"{model.head} head, {name}", chosen == wanted, f"{TOKENS} tokens as from all logits")


def _equal(group: str, subject: str, got: npt.NDArray[np.float32], want: npt.NDArray[np.float32]) -> Check:
    off = int((got != want).sum())
    return Check(group, subject, off == 0, f"{off} of {want.size} logits differ" if off else "the same bits")


# ---- the right model ------------------------------------------------------------------------------------------


def _prompts(vocab: int, count: int, length: int) -> list[list[int]]:
    rng = np.random.default_rng(length)
    return [rng.integers(0, vocab, length).tolist() for _ in range(count)]


def _reference(model: Model, checkpoint: Checkpoint, subject: str, most_near: float) -> Check:
    """Short prompts against the NumPy reference, all in one pass over the weights."""
    prompts = _prompts(model.shape.vocab, PROMPTS, 2)
    wanted = reference.forward_many(checkpoint, prompts)
    return _agreement("reference", subject, [model.logits(p, cache="f32") for p in prompts], wanted, most_near)


def _whole(model: Model, checkpoint: Checkpoint) -> Iterator[Check]:
    """A large model whole, after its cut: through so many layers few prompts meet no such rounding."""
    if cut(checkpoint) is not checkpoint:
        yield _reference(model, checkpoint, "NumPy, all layers", 0)


def _agreement(
    group: str,
    subject: str,
    got: Sequence[npt.NDArray[np.float32]],
    want: Sequence[npt.NDArray[np.float32]],
    most_near: float,
) -> Check:
    """As many prompts agree as asked for, and none is further off than a rounding can be."""
    off = np.array([np.abs(g - w).max() / w.std() for g, w in zip(got, want, strict=True)])
    near = float((off < NEAR).mean())
    detail = f"{near:.0%} of {len(off)} prompts within {NEAR:g} standard deviations, the worst {off.max():.2g}"
    return Check(group, subject, bool(near >= most_near and off.max() < MOST), detail)


def _against(model: Model, source: str, theirs: Logits) -> Iterator[Check]:
    """The model that transformers computes in float32 from a checkpoint folder."""
    prompts = _prompts(model.shape.vocab, PROMPTS, 2)
    want = [theirs(p) for p in prompts]
    near = MOST_NEAR if model.ternary_weights <= CUT_WEIGHTS else 0
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
    # as loaded, scales and unpacked weights keep the type of the file; for float32 they must be cast by hand
    module: Any = torch.nn.Module.float(loaded)
    module.eval()

    def logits(ids: list[int]) -> npt.NDArray[np.float32]:
        with torch.no_grad():
            found: npt.NDArray[np.float32] = module(torch.tensor(ids)[None]).logits[0].numpy()
        return found

    return logits


# ---- the receipt ----------------------------------------------------------------------------------------------


def _machine() -> dict[str, Any]:
    from bitgen import __version__

    return {
        "bitgen": __version__,
        "cpu": plan.cpu_name(),
        "system": f"{platform.system()} {platform.machine()}",
        "compiler": clang.find_compiler(targets.host_arch()).version,
        "templates": _templates(),
    }


def _templates() -> str:
    """Hash of all template text."""
    digest = hashlib.sha256()
    for file in sorted(data.folder("templates").rglob("*.j2")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _model(path: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while block := f.read(1 << 22):
            digest.update(block)
    name, size = checkpoint.shape.name, path.stat().st_size
    return {"name": name, "file": path.name, "bytes": size, "sha256": digest.hexdigest()}


def _levels(lookups: Sequence[Lookup], artefact: Artefact) -> dict[str, Any]:
    plans = {at.isa: {role: asdict(p) for role, p in at.matrices.items()} for at in lookups}
    return {
        "plans": plans,
        "plans_sha256": hashlib.sha256(json.dumps(plans, sort_keys=True).encode()).hexdigest(),
        "library_sha256": hashlib.sha256(artefact.path.read_bytes()).hexdigest(),
    }
