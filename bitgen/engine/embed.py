"""Texts to vectors: the hidden states after the last norm, pooled over a text's tokens and scaled to length one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitgen.data import replacing
from bitgen.engine import arguments
from bitgen.engine.opened import FloatArray, OpenedModel
from bitgen.engine.session import Session, states_batch
from bitgen.errors import BitgenError, UnsupportedError, quoted
from bitgen.spec import Progress

POOLINGS: dict[str, int] = {"mean": 1, "cls": 2, "last": 3}
"""How a text's states become one vector -> GGUF's <architecture>.pooling_type. cls: the state of the first token."""

PASS_TOKENS, MOST_SESSIONS = 512, 32
"""Most tokens and most texts of one pass."""


@dataclass(frozen=True)
class Embeddings:
    """A vector of length one for each text, float32 [texts, hidden]."""

    model: str
    pooling: str
    texts: Sequence[str]
    vectors: FloatArray

    def rows(self) -> list[list[float]]:
        """The vectors as the shortest decimals that give their float32 back."""
        return [[float(str(value)) for value in row] for row in self.vectors]

    def to_json(self) -> dict[str, Any]:
        """What `bitgen embed --json` prints."""
        pairs = [{"text": text, "vector": row} for text, row in zip(self.texts, self.rows(), strict=True)]
        return {"model": self.model, "pooling": self.pooling, "embeddings": pairs}

    def save(self, path: Path) -> None:
        """Write the vectors to a .npy file; it appears whole or not at all."""
        with replacing(path) as part, part.open("wb") as f:
            np.save(f, self.vectors)


def pooling_of(metadata: Any) -> str:
    """The pooling that a file's metadata asks for; "last" where it asks for none, as causal models were trained."""
    asked = metadata.get(f"{metadata.get('general.architecture')}.pooling_type", 0)
    names = {0: "last", **{number: name for name, number in POOLINGS.items()}}
    known = type(asked) is int and asked in names
    return names[asked] if known else f"type {quoted(asked)}"


def known_pooling(pooling: str) -> str:
    """An argument that names a pooling; ArgumentError where it does not."""
    arguments.one_of("pooling", pooling, POOLINGS)
    return pooling


def embed(model: OpenedModel, texts: Sequence[str], pooling: str, progress: Progress = lambda *_: None) -> FloatArray:
    """Vectors float32 [len(texts), hidden] of length one; see `Model.embed`. progress: (texts done, texts)."""
    if pooling not in POOLINGS:
        known = ", ".join(POOLINGS)
        raise UnsupportedError(f"pooling {arguments.shown(pooling)} is not supported; known: {known}")
    texts = arguments.texts("texts", texts)
    ids = [_ids(model, i, text) for i, text in enumerate(texts)]
    vectors = np.empty((len(texts), model.shape.hidden), np.float32)
    with ExitStack() as opened:
        sessions: list[Session] = []
        done = 0
        for group in _groups(ids):
            progress(done, len(texts))
            done += len(group)
            for i in group[len(sessions) :]:  # the longest texts come first, so each session has room for later ones
                context = len(ids[i])
                session = sessions[0].share(context) if sessions else Session(model, context=context)
                sessions.append(opened.enter_context(session))
            vectors[group] = _pooled(sessions[: len(group)], [ids[i] for i in group], pooling)
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    unit: FloatArray = (vectors / np.maximum(norms, 1e-12)).astype(np.float32)
    return unit


def _ids(model: OpenedModel, number: int, text: str) -> list[int]:
    """The tokens of a text, with those that the model was trained to see around it."""
    tokenizer = model.tokenizer
    ids = tokenizer.encode(text)
    if tokenizer.add_eos and tokenizer.eos is not None:
        ids.append(tokenizer.eos)
    if not ids:
        raise BitgenError(f"text {number + 1} is empty, and this model puts no token around a text; give it some text")
    if len(ids) > model.shape.context:
        raise BitgenError(
            f"text {number + 1} has {len(ids)} tokens, the model's context holds {model.shape.context}; cut it up"
        )
    return ids


def _groups(ids: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Indices of the texts of each pass; the longest texts come first."""
    group: list[int] = []
    tokens = 0
    for i in sorted(range(len(ids)), key=lambda i: -len(ids[i])):
        if group and (tokens + len(ids[i]) > PASS_TOKENS or len(group) == MOST_SESSIONS):
            yield group
            group, tokens = [], 0
        group.append(i)
        tokens += len(ids[i])
    if group:
        yield group


def _pooled(sessions: Sequence[Session], ids: Sequence[Sequence[int]], pooling: str) -> FloatArray:
    """float32 [texts, hidden], each text in a session of its own. The mean is taken in float64."""
    for session in sessions:
        session.rewind(0)
    if pooling == "last":
        return states_batch(sessions, ids)
    ends = np.cumsum([len(text) for text in ids])
    states = states_batch(sessions, ids, every=True)
    texts = np.split(states, ends[:-1])
    first = np.stack([text[0] for text in texts])
    return first if pooling == "cls" else np.stack([text.mean(0, np.float64).astype(np.float32) for text in texts])
