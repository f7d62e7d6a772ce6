"""bitgen models for lm-evaluation-harness (`pip install lm-eval`).

    lm_eval --model bitgen --model_args pretrained=model.gguf --tasks arc_easy     # after: import this module
    python -m bitgen.integrations.lm_eval --model_args pretrained=model.gguf --tasks arc_easy

Importing this module registers the model type `bitgen`; running it does that and starts the harness's command line.
A model of the harness computes three things, which its documentation defines: the log likelihood of a continuation,
the log likelihood of a whole text, and a generation until some string. What does not fit into the context is cut as
the harness's own class for transformers cuts it, with a warning or an error that has the numbers; a prompt that fits is
kept whole.
https://github.com/EleutherAI/lm-evaluation-harness
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from tqdm import tqdm

from bitgen.engine.model import Model
from bitgen.engine.opened import Cache
from bitgen.engine.sampling import NEUTRAL, Sampling
from bitgen.engine.score import score_ids
from bitgen.errors import BitgenError

log = logging.getLogger("bitgen")

HARNESS = {"batch_size", "max_batch_size", "trust_remote_code"}
"""Arguments that the harness passes to every model, and that decide nothing here."""
LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""What tasks call the most tokens to generate; the first one counts."""
SAMPLING = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p",
            "repetition_penalty": "repeat_penalty"}  # fmt: skip
"""What tasks call the parameters of Sampling."""
WITHOUT_EFFECT = {"num_beams": 1, "num_return_sequences": 1, "use_cache": True}
"""Options of transformers' generation, and the value that asks for nothing else than is done here."""


@register_model("bitgen")
class BitgenLM(TemplateLM):  # type: ignore[misc]
    """A GGUF file as the harness sees it.

    pretrained: a file or a name (default: the shipped model). threads, isa, cache: as in `Model.load` and
        `Model.session`.
    max_length: context in tokens (default: the model's). max_gen_toks: limit of generated tokens where a task has none.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        threads: int | None = None,
        isa: str | None = None,
        cache: Cache = "f16",
        max_length: int | None = None,
        max_gen_toks: int = 256,
        device: str | None = None,
        **more: Any,
    ) -> None:
        super().__init__()
        if unknown := sorted(more.keys() - HARNESS):
            raise BitgenError(
                f"model_args: {', '.join(unknown)} is not known; bitgen.integrations.lm_eval has the list"
            )
        if device not in (None, "cpu"):
            raise BitgenError(f"device is {device!r}: bitgen runs on CPUs")
        self._model = Model.load(pretrained, threads=int(threads) if threads else None, isa=isa)
        self._cache: Cache = cache
        self.max_length, most = int(max_length or self._model.shape.context), self._model.shape.context
        if not 2 <= self.max_length <= most:
            raise BitgenError(f"max_length is {self.max_length}; the model's context holds 2 to {most} tokens")
        self.max_gen_toks = int(max_gen_toks)

    @property
    def eot_token_id(self) -> int:
        """Id of the end-of-text token, which also serves as an empty context if there is no begin-of-text token."""
        tokenizer = self._model.tokenizer
        return next(id for id in (tokenizer.eos, tokenizer.bos, 0) if id is not None)

    @property
    def prefix_token_id(self) -> int:
        """Id of the token before a text without context: begin-of-text, else end-of-text."""
        bos = self._model.tokenizer.bos
        return self.eot_token_id if bos is None else bos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids of a text, begin-of-text first if the model was trained with it."""
        return self._model.tokenizer.encode(string, add_bos=add_special_tokens)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """(log probability in nats, whether greedy decoding gives it) of each continuation.

        A context that is too long is cut at its beginning, with a warning; a continuation that does not fit is a
        BitgenError. The common prefix of two successive requests stays in the KV cache: in most tasks the choices of
        one question follow each other.
        """
        answers: list[tuple[float, bool]] = []
        with self._model.session(context=self.max_length, cache=self._cache) as session:
            for key, context, continuation in tqdm(requests, disable=disable_tqdm, desc="log likelihoods"):
                ids = self._scored(context, continuation)
                first = len(ids) - len(continuation)
                session._resume(ids[:first])
                found = score_ids(session, ids, first)
                answers.append((found.total, bool(found.greedy.all())))
                self.cache_hook.add_partial("loglikelihood", key, answers[-1])
        return answers

    def _scored(self, context: list[int], continuation: list[int]) -> list[int]:
        """The ids of a context and its continuation, as many as fit: the last one is only predicted."""
        if not context or not 0 < len(continuation) <= self.max_length:
            raise BitgenError(
                f"a continuation of {len(continuation)} tokens after {len(context)} cannot be scored: "
                f"both must have some, and the context holds {self.max_length}"
            )
        excess = len(context) + len(continuation) - (self.max_length + 1)
        if excess > 0:
            numbers = len(context), len(continuation), self.max_length, excess
            log.warning("context of %d tokens, continuation of %d, max_length %d: the first %d are cut off", *numbers)
        return (context + continuation)[max(excess, 0) :]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log probability in nats of each whole text; a text longer than max_length is scored in windows."""
        totals = []
        for (text,) in tqdm([r.args for r in requests], disable=disable_tqdm, desc="rolling log likelihoods"):
            windows = [(("", ""), given, wanted) for given, wanted in self._windows(text)]
            totals.append(sum(total for total, _ in self._loglikelihood_tokens(windows, disable_tqdm=True)))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), totals[-1])
        return totals

    def _windows(self, text: str) -> Iterator[tuple[list[int], list[int]]]:
        """(context, continuation) of each window, as token ids; each token of the text is scored in one window."""
        ids = self.tok_encode(text, add_special_tokens=False)
        for pair in utils.get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1):
            yield utils.make_disjoint_window(pair)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The continuation of each prompt up to one of its `until` strings, a stop token, or its limit of tokens."""
        texts = []
        for prompt, options in tqdm([r.args for r in requests], disable=disable_tqdm, desc="generating"):
            texts.append(self._generate(prompt, options))
            self.cache_hook.add_partial("generate_until", (prompt, options), texts[-1])
        return texts

    def _generate(self, prompt: str, options: Mapping[str, Any]) -> str:
        until = [options["until"]] if isinstance(options.get("until"), str) else list(options.get("until") or [])
        wanted = next((int(options[name]) for name in LIMITS if options.get(name) is not None), self.max_gen_toks)
        ids, limit = self._fitted(self.tok_encode(prompt), wanted)
        stop = [string for string in until if string] or True
        sampling = self._sampling(options)
        return "".join(self._model.generate(ids, limit, stop=stop, sampling=sampling, cache=self._cache))

    def _fitted(self, ids: list[int], wanted: int) -> tuple[list[int], int]:
        """A prompt, and how many tokens to generate: fewer where they exceed max_length.

        Only a prompt that leaves no room for one token is cut, at its beginning.
        """
        room = self.max_length - len(ids)
        numbers = f"the prompt has {len(ids)} tokens, max_gen_toks is {wanted}, max_length {self.max_length}"
        if wanted < 0 or (room < 1 and wanted >= self.max_length):
            raise BitgenError(f"{numbers}: no token can be generated; lower max_gen_toks")
        if room >= wanted:
            return ids, wanted
        if room >= 1:
            log.warning("%s: at most %d are generated", numbers, room)
            return ids, room
        log.warning("%s: the first %d tokens of the prompt are cut off", numbers, wanted - room)
        return ids[wanted - room :], wanted

    def _sampling(self, options: Mapping[str, Any]) -> Sampling:
        """How a task wants tokens chosen: greedily, unless it asks for a temperature."""
        known = {*SAMPLING, *LIMITS, "until", "do_sample"}
        for name, value in options.items():
            if name not in known and WITHOUT_EFFECT.get(name, ...) != value:
                raise BitgenError(f"the task's generation option {name}={value!r} is not known here; leave it out")
        fields = {field: options[name] for name, field in SAMPLING.items() if options.get(name) is not None}
        sampled = options.get("do_sample") is not False and float(fields.get("temperature", 0)) > 0
        chosen = {**fields, "temperature": float(fields["temperature"]) if sampled else 0.0}
        return replace(NEUTRAL, repeat_last=self.max_length, **chosen)


if __name__ == "__main__":
    import sys

    from lm_eval.__main__ import cli_evaluate

    if not {"--model", "-M"} & {argument.partition("=")[0] for argument in sys.argv[1:]}:
        sys.argv[1:1] = ["--model", "bitgen"]
    cli_evaluate()
