"""Generation under asyncio: the same text, other tasks go on, and what is cancelled leaves nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import bitgen
from bitgen.errors import EngineError

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def model() -> bitgen.Model:
    return bitgen.Model.load(threads=1)


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("bitgen")]


@pytest.fixture
def gated(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """A pass that says when it is at work, and waits until it may end; and sessions that are closed in the end."""
    at_work, may_end = threading.Event(), threading.Event()
    passing, opened = bitgen.Session.next, []
    opening = bitgen.Session.__init__

    def wait(self: bitgen.Session, *args: Any) -> list[int]:
        at_work.set()
        assert may_end.wait(60)
        return passing(self, *args)

    def note(self: bitgen.Session, *args: Any, **more: Any) -> None:
        opening(self, *args, **more)
        opened.append(self)

    monkeypatch.setattr(bitgen.Session, "next", wait)
    monkeypatch.setattr(bitgen.Session, "__init__", note)
    yield at_work, may_end
    assert opened and all(session._handle is None for session in opened)


def test_the_text_is_the_same(model: bitgen.Model) -> None:
    async def main() -> tuple[list[str], bitgen.AsyncGeneration]:
        generation = model.agenerate(PROMPT, 30, seed=4, stop=["never said"])
        return [piece async for piece in generation], generation

    pieces, generation = asyncio.run(main())
    want = model.generate(PROMPT, 30, seed=4, stop=["never said"])
    assert pieces == list(want) and generation.generation.text == want.text
    assert generation.generation.timing.stopped == want.timing.stopped
    assert repr(generation) == f"<AsyncGeneration{repr(want).removeprefix('<Generation')}"
    assert not workers()


def test_texts_and_other_tasks_go_on_together(model: bitgen.Model) -> None:
    async def text(prompt: str) -> str:
        return "".join([piece async for piece in model.agenerate(prompt, 40, seed=1)])

    async def main() -> list[Any]:
        async def count() -> int:
            for turns in range(50):  # noqa: B007
                await asyncio.sleep(0)
            return turns

        return await asyncio.gather(text(PROMPT), text("Lily"), count())

    assert asyncio.run(main()) == [*("".join(model.generate(p, 40, seed=1)) for p in (PROMPT, "Lily")), 49]
    assert not workers()


def test_the_loop_goes_on_during_a_pass(model: bitgen.Model, gated: tuple[threading.Event, threading.Event]) -> None:
    at_work, may_end = gated

    async def main() -> str:
        async def text() -> str:
            return "".join([piece async for piece in model.agenerate(PROMPT, 2, seed=1)])

        task = asyncio.create_task(text())
        while not at_work.is_set():
            await asyncio.sleep(0.001)
        assert not task.done()
        may_end.set()
        return await task

    assert asyncio.run(main())


@pytest.mark.parametrize("times", [1, 2])
def test_a_cancelled_task_ends_with_its_step(
    model: bitgen.Model, gated: tuple[threading.Event, threading.Event], times: int
) -> None:
    at_work, may_end = gated
    generation = model.agenerate(PROMPT, 100, stop=False)

    async def main() -> None:
        async def text() -> None:
            async for _ in generation:
                pass

        task = asyncio.create_task(text())
        while not at_work.is_set():
            await asyncio.sleep(0.001)
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0.01)
        assert not task.done() and workers()  # the step is at work
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not workers()

    asyncio.run(main())
    assert len(generation.generation.token_ids) == 1


def test_an_iterator_that_is_left_is_closed(
    model: bitgen.Model, gated: tuple[threading.Event, threading.Event]
) -> None:
    gated[1].set()

    async def main() -> None:
        async for _ in model.agenerate(PROMPT, 100, stop=False):
            break

    asyncio.run(main())
    assert not workers()


def test_errors_come_to_the_caller(model: bitgen.Model) -> None:
    async def main() -> None:
        with model.session() as session:
            generation = model.agenerate(PROMPT, 100, session=session)
            with pytest.raises(EngineError, match="this session is closed"):
                async for _ in generation:
                    session.close()
            with pytest.raises(EngineError, match="was iterated before"):
                async for _ in generation:
                    pass

    asyncio.run(main())
    assert not workers()


def test_an_answer(model: bitgen.Model) -> None:
    messages = [{"role": "user", "content": "Hello"}]

    async def main() -> str:
        answer = bitgen.AsyncGeneration(model.chat(messages, 8, template="falcon3"))
        return "".join([piece async for piece in answer])

    assert asyncio.run(main()) == "".join(model.chat(messages, 8, template="falcon3"))


def test_a_long_prompt_is_left_between_two_passes(model: bitgen.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that is cancelled in the prompt does not wait for all of it."""
    appended: list[int] = []
    append = bitgen.Session.append
    monkeypatch.setattr("bitgen.engine.generate.PREFILL_AT_ONCE", 16)
    monkeypatch.setattr(bitgen.Session, "append", lambda self, ids: (appended.append(len(ids)), append(self, ids))[1])

    async def main() -> None:
        async for piece in model.agenerate([5] * 400, 4, seed=1):
            assert piece == ""
            break

    asyncio.run(main())
    assert appended == [16] and not workers()
    want = "".join(model.generate([5] * 400, 4, seed=1))
    monkeypatch.undo()
    assert want == "".join(model.generate([5] * 400, 4, seed=1)) and len(appended) == 25
