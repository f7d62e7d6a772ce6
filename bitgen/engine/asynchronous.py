"""Generation for programs that use asyncio: each step runs in a thread of its own, and the event loop goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import cast

from bitgen.engine.arguments import instance
from bitgen.engine.generate import Generation
from bitgen.engine.ownership import Uncopied

_END = object()


class AsyncGeneration(Uncopied):
    """A `Generation` to iterate with `async for`; `generation` holds its text, tokens and timing.

    It has one thread while it is iterated. Where the task is cancelled or the iterator closed (`aclose`; an iterator
    that is left before its end is closed by the event loop), the step at work comes to its end, and then nothing of it
    is left: no thread and no session.
    """

    def __init__(self, generation: Generation) -> None:
        self.generation: Generation = instance("generation", generation, Generation, "a Generation")

    async def __aiter__(self) -> AsyncIterator[str]:
        pieces, loop = iter(self.generation), asyncio.get_running_loop()
        worker = ThreadPoolExecutor(1, "bitgen")
        try:
            while (piece := await loop.run_in_executor(worker, next, pieces, _END)) is not _END:
                yield cast(str, piece)
        finally:
            try:
                await _completed(loop.run_in_executor(worker, pieces.close))  # after the step at work
            finally:
                worker.shutdown()  # which has nothing to do

    def __repr__(self) -> str:
        return f"<Async{repr(self.generation)[1:]}"


async def _completed(ended: asyncio.Future[None]) -> None:
    """Wait for a thread's work also where this task is cancelled meanwhile."""
    cancelled: asyncio.CancelledError | None = None
    while not ended.done():
        try:
            await asyncio.shield(ended)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
