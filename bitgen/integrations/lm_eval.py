"""bitgen models for lm-evaluation-harness (`pip install lm-eval`).

    lm_eval --model bitgen --model_args pretrained=model.gguf --tasks arc_easy     # after: import this module
    python -m bitgen.integrations.lm_eval --model_args pretrained=model.gguf --tasks arc_easy

Importing this module registers the model type `bitgen`; running it does that and starts the harness's command line.
A model of the harness computes three things, which its documentation defines: the log likelihood of a continuation,
the log likelihood of a whole text, and a generation until some string.
https://github.com/EleutherAI/lm-evaluation-harness
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from tqdm import tqdm

from bitgen.engine.generate import Generation
from bitgen.engine.model import Model
from bitgen.engine.score import score_ids
from bitgen.engine.session import Cache, common_prefix


@register_model("bitgen")
class BitgenLM(TemplateLM):  # type: ignore[misc]
    """A GGUF file as the harness sees it.

    pretrained: the file (default: the shipped model). threads, isa, cache: as in `Model.load` and `Model.session`.
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
        **_: Any,  # batch_size, device and the like, which the harness passes to every model
    ) -> None:
        super().__init__()
        self._model = Model.load(pretrained, threads=int(threads) if threads else None, isa=isa)
        self._cache: Cache = cache
        self.max_length = min(int(max_length or self._model.shape.context), self._model.shape.context)
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

        A context that is too long is cut at its beginning. The common prefix of two successive requests stays in the
        KV cache: in most tasks the choices of one question follow each other.
        """
        answers: list[tuple[float, bool]] = []
        held: list[int] = []
        with self._model.session(context=self.max_length, cache=self._cache) as session:
            for key, context, continuation in tqdm(requests, disable=disable_tqdm, desc="log likelihoods"):
                ids = (context + continuation)[-self.max_length - 1 :]
                first = max(1, len(ids) - len(continuation))
                session.rewind(min(common_prefix(ids, held), first - 1))
                found, held = score_ids(session, ids, first), ids[:-1]
                answers.append((found.total, bool(found.greedy.all())))
                self.cache_hook.add_partial("loglikelihood", key, answers[-1])
        return answers

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
            until = [options["until"]] if isinstance(options.get("until"), str) else list(options.get("until") or [])
            texts.append(self._generate(prompt, until, options))
            self.cache_hook.add_partial("generate_until", (prompt, options), texts[-1])
        return texts

    def _generate(self, prompt: str, until: list[str], options: dict[str, Any]) -> str:
        limit = min(int(options.get("max_gen_toks", self.max_gen_toks)), self.max_length - 1)
        sampled = options.get("do_sample", False) and options.get("temperature", 0) > 0
        ids = self.tok_encode(prompt)[-(self.max_length - limit) :]
        generation: Generation = self._model.generate(
            ids, limit, temperature=float(options.get("temperature", 0)) if sampled else 0.0,
            top_p=float(options.get("top_p", 1.0)), top_k=int(options.get("top_k", 0)), cache=self._cache,
        )  # fmt: skip
        text = ""
        for piece in generation:
            text += piece
            ends = [text.find(stop) for stop in until if stop and stop in text]
            if ends:
                return text[: min(ends)]
        return text


if __name__ == "__main__":
    import sys

    from lm_eval.__main__ import cli_evaluate

    if not any(argument.startswith("--model") and argument != "--model_args" for argument in sys.argv[1:]):
        sys.argv[1:1] = ["--model", "bitgen"]
    cli_evaluate()
