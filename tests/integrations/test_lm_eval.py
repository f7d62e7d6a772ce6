"""bitgen in lm-evaluation-harness: nothing is cut, shortened or left out without a word."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance

from bitgen.errors import BitgenError
from bitgen.integrations.lm_eval import BitgenLM

PROMPT = "Once upon a time, there was a little girl named"


def ask(kind: str, *arguments: object) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=arguments, idx=0)]


def generate(lm: Any, prompt: str = PROMPT, **options: Any) -> str:
    (text,) = lm.generate_until(ask("generate_until", prompt, options), disable_tqdm=True)
    return str(text)


@pytest.fixture(scope="module")
def lm() -> BitgenLM:
    return BitgenLM(threads=1, max_length=64)


@pytest.fixture
def given(lm: BitgenLM, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Tokens of the prompt, and most tokens to generate, of each call to the model."""
    calls: list[tuple[int, int]] = []
    generate = lm._model.generate

    def counted(ids: list[int], limit: int, **options: Any) -> Any:
        calls.append((len(ids), limit))
        return generate(ids, limit, **options)

    monkeypatch.setattr(lm._model, "generate", counted)
    return calls


def test_a_prompt_that_fits_is_kept(
    lm: BitgenLM, given: list[tuple[int, int]], caplog: pytest.LogCaptureFixture
) -> None:
    n = len(lm.tok_encode(PROMPT))
    texts = {}
    for most in (20, 64 - n, 64 - n + 1, 60, 63, 64, 256):
        caplog.clear()
        texts[most] = generate(lm, max_gen_toks=most)
        assert given[-1] == (n, min(most, 64 - n))
        said = [r.getMessage() for r in caplog.records if r.name == "bitgen"]
        numbers = f"the prompt has {n} tokens, max_gen_toks is {most}, max_length 64: at most {64 - n} are generated"
        assert said == ([numbers] if most > 64 - n else [])
    assert len(set(texts.values())) == 2 and texts[256] == texts[60] and texts[256].startswith(texts[20])


def test_a_prompt_that_does_not_fit_is_cut_with_a_warning_or_refused(
    lm: BitgenLM, given: list[tuple[int, int]], caplog: pytest.LogCaptureFixture
) -> None:
    long = PROMPT * 10
    n = len(lm.tok_encode(long))
    generate(lm, long, max_gen_toks=24)
    assert given == [(40, 24)]
    assert f"the first {n - 40} tokens of the prompt are cut off" in caplog.text
    for most in (64, 256, -1):
        with pytest.raises(BitgenError, match=rf"has {n} tokens, max_gen_toks is {most}, max_length 64: no token can"):
            generate(lm, long, max_gen_toks=most)
    assert len(given) == 1


@pytest.mark.parametrize("name", ["max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"])
def test_the_limit_by_all_its_names(lm: BitgenLM, given: list[tuple[int, int]], name: str) -> None:
    generate(lm, **{name: 3, "num_beams": 1, "until": None})
    assert given[-1][1] == 3


def test_how_tokens_are_chosen(lm: BitgenLM) -> None:
    assert lm._sampling({"do_sample": False, "temperature": 0.7}).temperature == 0
    assert lm._sampling({"top_p": 0.5, "until": ["x"]}).temperature == 0
    for more in ({}, {"do_sample": True}):
        chosen = lm._sampling({"temperature": 0.7, "top_p": 0.5, "repetition_penalty": 1.2, **more})
        assert (chosen.temperature, chosen.top_p, chosen.repeat_penalty, chosen.repeat_last) == (0.7, 0.5, 1.2, 64)
    for wrong in ({"num_beams": 4}, {"length_penalty": 2.0}, {"nonsense": 1}):
        with pytest.raises(BitgenError, match=f"generation option {next(iter(wrong))}=.* is not known"):
            lm._sampling(wrong)


def test_scores_are_cut_with_a_warning_or_refused(lm: BitgenLM, caplog: pytest.LogCaptureFixture) -> None:
    context, continuation = list(range(1, 61)), [7, 8, 9]
    (whole,) = lm._loglikelihood_tokens([(("", ""), context[:58], continuation)], disable_tqdm=True)
    assert not caplog.records and math.isfinite(whole[0])
    (cut,) = lm._loglikelihood_tokens([(("", ""), [5, 5, 5, *context], continuation)], disable_tqdm=True)
    assert "context of 63 tokens, continuation of 3, max_length 64: the first 1 are cut off" in caplog.text
    (same,) = lm._loglikelihood_tokens([(("", ""), [5, 5, *context], continuation)], disable_tqdm=True)
    assert cut == same
    for given, wanted in (([1], list(range(65))), ([], [1]), ([1], [])):
        with pytest.raises(BitgenError, match=f"a continuation of {len(wanted)} tokens after {len(given)} cannot be"):
            lm._loglikelihood_tokens([(("", ""), given, wanted)], disable_tqdm=True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"max_lenght": 64}, "max_lenght is not known"),
        ({"device": "cuda:0"}, "'cuda:0': bitgen runs on CPUs"),
        ({"max_length": 100000}, "max_length is 100000"),
        ({"max_length": -1}, "max_length is -1"),
    ],
)
def test_arguments_are_understood_or_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(BitgenError, match=words):
        BitgenLM(threads=1, **arguments)
    assert BitgenLM(threads=1, device="cpu", batch_size=1, max_batch_size=None).max_length > 64


@pytest.mark.transformers
def test_what_is_cut_is_what_the_harness_cuts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its class for transformers on the same weights: scores to within rounding, and greedy texts."""
    pytest.importorskip("torch")
    import hf_models
    from lm_eval.models.huggingface import HFLM

    from bitgen.convert import convert

    directory = hf_models.save(hf_models.LLAMA, tmp_path / "tiny")
    convert(directory, tmp_path / "tiny.gguf")
    theirs = HFLM(str(directory), device="cpu", dtype="float32", max_length=32, batch_size=1)
    ours = BitgenLM(str(tmp_path / "tiny.gguf"), threads=1, max_length=32, cache="f32")
    text = "aba beb cic dod " * 8
    assert len(ours.tok_encode(text)) > 40 and ours.tok_encode(text) == theirs.tok_encode(text)
    with caplog.at_level(logging.WARNING):
        for kind, arguments in (
            ("loglikelihood", (text, " aba beb")),
            ("loglikelihood", ("aba", " beb cic")),
            ("loglikelihood", ("", "aba beb")),
            ("loglikelihood_rolling", (text,)),
            ("loglikelihood_rolling", (text[:20],)),
        ):
            (wanted,), (found,) = (getattr(model, kind)(ask(kind, *arguments)) for model in (theirs, ours))
            assert found == pytest.approx(wanted, abs=0.05)
        for prompt, most in ((text, 8), ("aba beb", 8)):
            how = {"max_gen_toks": most, "until": ["\n\n"], "do_sample": False}
            assert generate(ours, prompt, **how) == generate(theirs, prompt, **how)
