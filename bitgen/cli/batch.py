"""`run --batch`: prompts from lines of JSON, continued together; what became of each, in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from bitgen import Batch, Model, Sampling
from bitgen.cli.streams import read_text
from bitgen.convert.json_files import parse_object
from bitgen.engine.batch import Request
from bitgen.engine.generate import Continuation
from bitgen.engine.opened import Cache
from bitgen.engine.stops import Stop
from bitgen.errors import BitgenError, quoted

SAMPLED = tuple(field.name for field in fields(Sampling))
KEYS = ("prompt", "id", "max_tokens", "stop", *SAMPLED)


@dataclass(frozen=True)
class Line:
    """A prompt and how it is continued; what a line does not say is as the command line says."""

    id: Any  # as the line has it, for the result; None: it has none
    text: Continuation


def read(
    file: str, model: Model, encode: Callable[[str], str | list[int]], max_tokens: int, stop: Stop, sampling: Sampling
) -> list[Line]:
    """All lines of a file. BitgenError names the line that is at fault; then none is continued."""
    lines = []
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if line.strip():
            where = f"{'standard input' if file == '-' else file}, line {number}"
            asked = _object(line, where)
            own = {name: asked[name] for name in SAMPLED if name in asked}
            try:
                text = Continuation(
                    model,
                    encode(asked["prompt"]),
                    asked.get("max_tokens", max_tokens),
                    asked.get("stop", stop),
                    sampling.given(None, own),
                )
            except BitgenError as e:
                raise BitgenError(f"{where}: {e}") from None
            lines.append(Line(asked.get("id"), text))
    return lines


def _object(line: str, where: str) -> Mapping[str, Any]:
    asked = parse_object(line, where)
    unknown = [key for key in asked if key not in KEYS]
    if unknown:
        raise BitgenError(f"{where}: there is no {quoted(unknown[0])}; the keys are {', '.join(KEYS)}")
    if not isinstance(asked.get("prompt"), str):
        what = f"the prompt is {quoted(asked['prompt'])}" if "prompt" in asked else "there is no prompt"
        raise BitgenError(f"{where}: {what}, must be a text")
    if not isinstance(asked.get("id"), (str, int, type(None))):
        raise BitgenError(f"{where}: the id is {quoted(asked['id'])}, must be a text or a whole number")
    return asked


def results(
    model: Model, lines: Sequence[Line], parallel: int, context: int | None, cache: Cache
) -> Iterator[dict[str, Any]]:
    """What became of each line, in their order, as soon as it and those before it are finished."""
    longest = context or max((line.text.context for line in lines), default=1)
    with Batch(model, min(parallel, len(lines) or 1), context=longest, cache=cache) as batch:
        requests = [
            batch.submit(text.prompt_ids, text.max_tokens, stop=text.stop, sampling=text.sampling)
            for text in (line.text for line in lines)
        ]
        done = 0
        while done < len(lines):
            if batch.busy:
                batch.step()
            while done < len(lines) and requests[done].finished:
                yield _result(lines[done].id, requests[done])
                done += 1


def _result(id: Any, request: Request) -> dict[str, Any]:
    named = {} if id is None else {"id": id}
    if request.error:
        return {**named, "error": str(request.error)}
    sampling = request.sampling
    assert sampling is not None
    return {
        **named, "text": request.text, "token_ids": request.token_ids, "prompt_tokens": len(request.prompt_ids),
        "stopped": request.timing.stopped, "seed": sampling.seed,
    }  # fmt: skip
