"""How likely a model finds a text: log probabilities token by token, and the perplexity of a long one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bitgen.engine import arguments
from bitgen.engine.opened import Cache, OpenedModel
from bitgen.engine.session import Session
from bitgen.errors import BitgenError

FloatArray = npt.NDArray[np.float64]

LOGITS_AT_ONCE = 1 << 24
"""Most logits in memory: 64 MiB."""


@dataclass(frozen=True)
class Score:
    """Log probabilities of a text's tokens, each given all before it."""

    tokens: list[int]
    logprobs: FloatArray  # natural log of each token's probability, [len(tokens)]
    greedy: npt.NDArray[np.bool_]  # whether it is the likeliest one, [len(tokens)]

    @property
    def total(self) -> float:
        """The log probability of the whole text."""
        return float(self.logprobs.sum())


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log probability over `tokens` tokens, and its standard error."""

    value: float
    error: float
    tokens: int
    windows: int
    seconds: float

    def __str__(self) -> str:
        rate = self.tokens / max(self.seconds, 1e-9)
        return f"perplexity {self.value:.4f} +/- {self.error:.4f} over {self.tokens} tokens ({rate:.0f} scored/s)"

    @classmethod
    def of(cls, logprobs: FloatArray, windows: int, seconds: float) -> Perplexity:
        """From natural log probabilities [n]: the error of the mean carried through exp to first order."""
        n, mean = len(logprobs), -float(logprobs.mean())
        value = math.exp(mean) if mean < 700 else math.inf
        error = value * float(logprobs.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
        return cls(value, error, n, windows, seconds)


def log_softmax(logits: npt.NDArray[np.float32]) -> FloatArray:
    """Natural log probabilities float64 [..., vocab] of logits float32 [..., vocab]."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    normaliser = np.log(np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64))
    logprobs: FloatArray = shifted - normaliser
    return logprobs


def score_ids(session: Session, ids: Sequence[int], first: int) -> Score:
    """Score ids[first:], each given all ids before it.

    The session holds a beginning of ids[:first - 1], perhaps nothing, and ends holding ids[:-1]. BitgenError where
    nothing comes before the first token to be scored.
    """
    if not 1 <= first < len(ids):
        raise BitgenError("a token can only be scored after another: give some context, or a begin-of-text token")
    if session.position < first - 1:
        session.append(ids[session.position : first - 1])
    step = max(1, min(len(ids), LOGITS_AT_ONCE // session.vocab))
    logprobs, greedy = [], []
    for at in range(first - 1, len(ids) - 1, step):
        given, wanted = ids[at : at + step], np.asarray(ids[at + 1 : at + step + 1])
        logits = session.forward(given[: len(wanted)], every=True)
        rows = np.arange(len(wanted))
        logprobs.append(log_softmax(logits)[rows, wanted])
        greedy.append(logits.argmax(axis=-1) == wanted)
    return Score(list(ids[first:]), np.concatenate(logprobs), np.concatenate(greedy))


def score(model: OpenedModel, text: str, context: str = "", cache: Cache = "f16") -> Score:
    """Score a text that follows a context. Without one, a model with a begin-of-text token scores every token;
    another cannot score the first, and leaves it out.

    Both are encoded as one text, so that no word is cut where they meet. BitgenError: it does not fit the context.
    """
    text, context = arguments.text("text", text), arguments.text("context", context)
    before, ids = model.tokenizer.encode(context), model.tokenizer.encode(context + text)
    first = min(max(len(before), 1), len(ids))
    if len(ids) - 1 > model.shape.context:
        raise BitgenError(f"the text has {len(ids)} tokens, the model's context holds {model.shape.context}")
    if first == len(ids):
        return Score([], np.empty(0), np.empty(0, bool))
    with Session(model, context=len(ids), cache=cache) as session:
        return score_ids(session, ids, first)


def perplexity(
    model: OpenedModel,
    text: str,
    ctx: int = 512,
    stride: int = 0,
    cache: Cache = "f16",
    progress: Callable[[int, int, float], None] = lambda *_: None,
) -> Perplexity:
    """Perplexity of a text, computed over windows of `ctx` tokens.

    stride 0, as llama-perplexity does it: windows that do not overlap, the first token of each replaced by
    begin-of-text where the model has that, and only the second half of each scored; what is left over at the end is
    not. Else, windows that begin `stride` tokens apart, in which each scores what the one before has not, so that
    every token of the text is scored once, with at least ctx - stride tokens before it.

    progress is called with (windows done, of, perplexity so far). BitgenError: a text shorter than one window,
    or ctx and stride that make no sense.
    """
    ctx = arguments.checked("ctx", ctx, model.shape.context)
    stride = arguments.checked("stride", stride, ctx - 1)
    ids = model.tokenizer.encode(arguments.text("text", text))
    if len(ids) < ctx:
        raise BitgenError(f"the text has {len(ids)} tokens, fewer than one window of {ctx}; take a smaller one")
    windows = list(_strided(ids, ctx, stride) if stride else _disjoint(ids, ctx, model))
    started, scores = time.perf_counter(), []
    with Session(model, context=ctx, cache=cache) as session:
        for done, (window, first) in enumerate(windows, 1):
            session.rewind(0)
            scores.append(score_ids(session, window, first).logprobs)
            progress(done, len(windows), Perplexity.of(np.concatenate(scores), done, 0).value)
    return Perplexity.of(np.concatenate(scores), len(windows), time.perf_counter() - started)


def _disjoint(ids: list[int], ctx: int, model: OpenedModel) -> Iterator[tuple[list[int], int]]:
    """(window, first scored index): each scores the half of its tokens that has the other half before it."""
    bos = [model.tokenizer.bos] if model.tokenizer.add_bos and model.tokenizer.bos is not None else None
    for at in range(0, len(ids) - ctx + 1, ctx):
        window = ids[at : at + ctx]
        yield (bos or window[:1]) + window[1:], ctx // 2 + 1


def _strided(ids: list[int], ctx: int, stride: int) -> Iterator[tuple[list[int], int]]:
    """(window, first scored index): overlapping windows, each token scored in the first that holds it."""
    seen = 1
    for at in range(0, len(ids), stride):
        window = ids[at : at + ctx]
        if at + len(window) > seen:
            yield window, seen - at
        seen = at + len(window)
        if seen == len(ids):
            return


@dataclass(frozen=True)
class TokenChoice:
    """A generated token, and the likeliest ones at its place: (token, natural log of its probability)."""

    token: int
    logprob: float
    likeliest: list[tuple[int, float]]

    @classmethod
    def of(cls, logits: npt.NDArray[np.float32], token: int, count: int) -> TokenChoice:
        """From logits float32 [vocab], before temperature and penalties."""
        logprobs: Any = log_softmax(logits)
        best = np.argsort(-logprobs, kind="stable")[:count]
        return cls(token, float(logprobs[token]), [(int(id), float(logprobs[id])) for id in best])
