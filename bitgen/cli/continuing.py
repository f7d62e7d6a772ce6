"""What `bitgen run` does with its options: a text that is printed as it comes, or as JSON, or a batch of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bitgen import Generation, Model, Sampling, Session
from bitgen.cli import batch, tables
from bitgen.cli.console import awaited, is_quiet, progress_bar, say, stream
from bitgen.engine.chat import ChatTemplate
from bitgen.engine.opened import Cache
from bitgen.engine.stops import Stop
from bitgen.errors import BitgenError


@dataclass(frozen=True)
class Run:
    """How prompts are continued. template: makes a user's message of a prompt, after what `system` says."""

    model: Model
    sampling: Sampling
    max_tokens: int
    stop: Stop
    context: int | None
    cache: Cache
    system: str | None = None
    template: ChatTemplate | None = None

    def encoded(self, prompt: str) -> str | list[int]:
        """A prompt as the model gets it."""
        if self.template is None:
            return prompt
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return self.template.encode([*system, {"role": "user", "content": prompt}])

    # ---- one text -------------------------------------------------------------------------------------------

    def one(self, prompt: str, prompt_lookup: int, logprobs: int | None, kept: Path | None, as_json: bool) -> None:
        """Continue a prompt. kept: the file of the prompt cache."""
        with self._session(kept) as session:
            generation = self.model.generate(
                self.encoded(prompt), self.max_tokens, stop=self.stop, sampling=self.sampling, cache=self.cache,
                prompt_lookup=prompt_lookup, logprobs=logprobs, session=session,
            )  # fmt: skip
            try:
                if as_json:
                    self._wait(generation)
                else:
                    self._print(prompt, generation)
            finally:
                for line in [self._json(generation)] if as_json else self._report(generation):
                    say(line, err=not as_json)

    def _wait(self, generation: Generation) -> None:
        """Until the text is complete."""
        with progress_bar() as listen:
            listen("reading the prompt", 0, 0)
            for _ in generation:
                listen("continuing the text", generation.timing.tokens, self.max_tokens)

    def _print(self, prompt: str, generation: Generation) -> None:
        """The text as it comes, behind the prompt where it goes on from there."""
        pieces = awaited("reading the prompt", generation)
        first = next(pieces, "")  # nothing stands on the line yet that a stage would overwrite
        stream(("" if self.template else prompt) + first)
        for piece in pieces:
            stream(piece)
        say()

    @contextmanager
    def _session(self, kept: Path | None) -> Iterator[Session | None]:
        """The session to work in, if it is not just the generation's own."""
        if kept is None and self.context is None:
            yield None
            return
        with self.model.session(context=self.context, cache=self.cache) as session:
            if kept is not None and kept.exists():
                try:
                    session.restore(kept)
                except BitgenError as e:
                    raise BitgenError(f"{e}; name another file, or remove this one") from None
            yield session
            if kept is not None:
                session.save(kept)

    def _report(self, generation: Generation) -> Iterator[str]:
        """Lines for stderr: log probabilities, what it took, and what cut it short."""
        yield from tables.logprobs(self.model.tokenizer, generation.choices)
        timing = generation.timing
        if not is_quiet():
            why = f"stopped: {timing.stopped or 'interrupted'}"
            yield f"{timing} | {why} | {self.model.about}, seed {self.sampling.seed}"
        if timing.stopped == "context full":
            most = self.model.shape.context
            advice = (
                f"--context up to {most} has more room" if generation.room < most else "the model has no larger one"
            )
            yield (
                f"bitgen: warning: the context of {generation.room} tokens was full after {timing.tokens} of "
                f"{self.max_tokens} tokens; {advice}"
            )

    def _json(self, generation: Generation) -> str:
        facts = {
            "model": self.model.shape.name, "text": generation.text, "token_ids": generation.token_ids,
            "prompt_tokens": len(generation.prompt_ids), "tokens": generation.timing.tokens,
            "stopped": generation.timing.stopped or "interrupted", "seed": self.sampling.seed,
            **_times(generation), "isa": self.model.plan.isa, "head": self.model.head, "threads": self.model.threads,
        }  # fmt: skip
        if generation.logprobs is not None:
            facts["logprobs"] = [asdict(choice) for choice in generation.choices]
        return json.dumps(facts)

    # ---- many texts -----------------------------------------------------------------------------------------

    def many(self, file: str, parallel: int) -> bool:
        """Continue the prompts of a file of JSON lines, and return whether each could be."""
        lines = batch.read(file, self.model, self.encoded, self.max_tokens, self.stop, self.sampling)
        answered = True
        # where results go to a terminal, they show how far it is
        with progress_bar() if not sys.stdout.isatty() else nullcontext(lambda *_: None) as listen:
            listen("continuing texts", 0, len(lines))
            for done, result in enumerate(batch.results(self.model, lines, parallel, self.context, self.cache), 1):
                listen("continuing texts", done, len(lines))
                say(json.dumps(result))
                answered = answered and "error" not in result
        return answered


def _times(generation: Generation) -> dict[str, Any]:
    """Seconds, and the tokens that were computed in them."""
    timing = generation.timing
    return {
        "load_s": timing.load_s, "prefill_tokens": timing.prompt_tokens, "prefill_s": timing.prefill_s,
        "decode_s": timing.decode_s, "proposed": timing.proposed, "accepted": timing.accepted,
    }  # fmt: skip
