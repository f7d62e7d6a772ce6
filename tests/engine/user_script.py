"""What a user may write: every public name, as `mypy --strict` reads it and as Python runs it (test_typing.py)."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

import bitgen
from bitgen import (
    ArgumentError,
    AsyncGeneration,
    Batch,
    BitgenError,
    Chat,
    Choice,
    CompileError,
    EngineError,
    FormatError,
    Generation,
    Model,
    RemoteError,
    Sampling,
    Session,
    UnsupportedError,
    api,
    forward_batch,
    next_batch,
)


def tell(stage: str, done: int, total: int) -> None:
    """A listener."""
    assert stage and done >= 0 <= total


def texts(model: Model) -> list[str]:
    """Text, in each way."""
    greedy = Sampling(temperature=0, top_k=1, top_p=1, min_p=0, repeat_penalty=1.2, repeat_last=8, seed=3)
    generation: Generation = model.generate("Once", 4, stop=["The end", "\n\n"], sampling=greedy, cache="int8")
    pieces: list[str] = list(generation)
    reason: str = generation.timing.stopped
    ids: list[int] = [*generation.prompt_ids, *generation.token_ids]
    assert pieces and reason and ids and generation.text == "".join(pieces)
    found: list[str] = model.generate_many(["Once", [1, 2, 3]], 4, batch=2, temperature=0.5, seed=1)
    told = model.generate("Once", 2, logprobs=2)
    found += told
    assert [choice.token for choice in told.choices] and model.sampling == Sampling()
    found += api.generate(model, "Once", 2, stop=False, prompt_lookup=4)
    return found


def sessions(model: Model, folder: Path) -> npt.NDArray[np.float32]:
    """What sessions do."""
    with model.session(threads=1, context=32, cache="f16") as session, session.share(32) as beside:
        session.append([1, 2])
        logits: npt.NDArray[np.float32] = session.forward([3])
        token: int = session.sample(Sampling(), logits, session.tokens, 0)
        more: list[int] = session.next([token], Sampling(), [*session.tokens, token], 1)
        session.rewind(session.position - 1)
        session.save(folder / "prompt.kv")
        count: int = beside.restore(folder / "prompt.kv")
        assert more and count == session.position and beside.tokens == session.tokens
        chosen = next_batch([session, beside], [[5], [6]], [Choice(Sampling(), [5], 0), Choice(Sampling(), [6], 0)])
        assert len(chosen) == 2 and session.rescored >= 0 and session.profile(False)
        opened: Session = Session(model, context=8)
        opened.close()
        "".join(model.generate("Once", 2, session=session))
        return forward_batch([session, beside], [[1], [2]], every=True)


def conversations(model: Model) -> str:
    """What answers."""
    messages = [{"role": "user", "content": "Hello"}]
    answer = model.chat(messages, 4, template="llama3", stop=True, seed=2)
    with Chat(model, system="Be kind.", template="llama3", context=128) as chat:
        said = "".join(chat.say("Hello", 4, temperature=0.5, stop="\n"))
        assert chat.answer is not None and chat.messages and chat.dropped == 0
    with api.chat(model, template="llama3") as other:
        other.clear()
    return "".join(answer) + said


def batches(model: Model) -> dict[str, str]:
    """Continuous batching."""
    with Batch(model, 2, context=64, cache="f32", prefill=16) as batch:
        first = batch.submit("Once", 4, stop="x", seed=1)
        second = batch.submit([1, 2, 3], 4, sampling=Sampling(seed=2))
        while batch.busy:
            for request, piece in batch.step():
                assert piece in request.text
        batch.cancel(second)
        assert first.error is None and first.finished
        return {"first": first.text, "second": second.text}


async def together(model: Model) -> list[str]:
    """Under asyncio."""

    async def text(seed: int) -> str:
        return "".join([piece async for piece in model.agenerate("Once", 4, seed=seed)])

    answer = AsyncGeneration(model.chat([{"role": "user", "content": "Hello"}], 2, template="llama3"))
    return [*await asyncio.gather(text(1), text(2)), *[piece async for piece in answer]]


def errors(model: Model) -> None:
    """What is raised."""
    kinds: tuple[type[BitgenError], ...] = (CompileError, FormatError, RemoteError, UnsupportedError)
    assert all(issubclass(kind, BitgenError) for kind in kinds) and bitgen.__version__
    for wrong in (-1, 0):
        try:
            model.session(context=wrong)
        except ArgumentError as error:
            assert isinstance(error, EngineError) and isinstance(error, ValueError) and str(error)


def main(folder: Path) -> None:
    """All of it."""
    with Model.load(threads=1, head="certified", progress=tell) as model:
        logits: npt.NDArray[np.float32] = model.logits([1, 2, 3])
        vectors: npt.NDArray[np.float32] = model.embed(["a", "b"], pooling="mean")
        score: float = model.score(" was a girl", context="There").total
        assert logits.shape[0] == 3 and len(vectors) == 2 and score < 0
        assert model.chat_template is None and model.about and model.ternary_weights > model.weight_bytes
        assert texts(model) and sessions(model, folder).shape[0] == 2 and conversations(model)
        assert batches(model)
        assert asyncio.run(together(model))
        errors(model)
        value: float = api.perplexity(model, "Tom has a red ball. " * 20, ctx=32, progress=tell).value
        assert value > 1 and api.embed(model, ["a"]).rows() and api.load(model) is model
    assert api.info(model.path)["sampling"]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
