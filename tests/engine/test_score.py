"""Log probabilities, perplexity and the harness that asks for them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import bitgen
from bitgen import cli
from bitgen.engine import score
from bitgen.errors import BitgenError

STORY = (
    "Once upon a time, there was a little girl named Lily. She had a big red ball. One day, Lily went to the park with "
    "her mom. She saw a boy who was sad. Lily gave him her ball and they played together. They were very happy."
)


@pytest.fixture(scope="module")
def model() -> bitgen.Model:
    return bitgen.Model.load(threads=2)


def by_hand(model: bitgen.Model, ids: list[int]) -> np.ndarray:
    """Log probability of ids[1:], from logits in double precision."""
    logits = model.logits(ids[:-1]).astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    return (logits - np.log(np.exp(logits).sum(-1, keepdims=True)))[np.arange(len(ids) - 1), ids[1:]]


@pytest.mark.parametrize("at_once", [1 << 24, 4096 * 7, 1])
def test_scores_are_the_log_probabilities(model: bitgen.Model, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(score, "LOGITS_AT_ONCE", at_once)
    ids = model.tokenizer.encode(STORY)
    found = model.score(STORY)
    assert found.tokens == ids[1:]  # all of the text: begin-of-text comes before it
    assert np.allclose(found.logprobs, by_hand(model, ids), rtol=0, atol=1e-5)
    assert found.total == pytest.approx(found.logprobs.sum())
    assert np.array_equal(found.greedy, model.logits(ids[:-1]).argmax(-1) == ids[1:])
    assert found.greedy.any() and not found.greedy.all()


def test_a_continuation_is_scored_after_its_context(model: bitgen.Model) -> None:
    context, text = STORY[:60], STORY[60:]
    n = len(model.tokenizer.encode(context))
    assert np.array_equal(model.score(text, context).logprobs, model.score(STORY).logprobs[n - 1 :])
    assert len(model.score("", context).tokens) == 0


def test_perplexity_in_windows_apart(model: bitgen.Model) -> None:
    """As llama-perplexity: of each window, with begin-of-text for its first token, the second half counts."""
    ids, ctx = model.tokenizer.encode(STORY * 3), 48
    wanted = np.concatenate(
        [by_hand(model, [ids[0], *ids[at + 1 : at + ctx]])[ctx // 2 :] for at in range(0, len(ids) - ctx + 1, ctx)]
    )
    found = score.perplexity(model, STORY * 3, ctx)
    assert found.tokens == len(wanted) == found.windows * (ctx - ctx // 2 - 1)
    assert found.value == pytest.approx(math.exp(-wanted.mean()), rel=1e-5)
    assert found.error == pytest.approx(found.value * wanted.std(ddof=1) / math.sqrt(len(wanted)), rel=1e-4)


def test_perplexity_in_overlapping_windows_scores_every_token_once(model: bitgen.Model) -> None:
    ids = model.tokenizer.encode(STORY)
    found = score.perplexity(model, STORY, ctx=32, stride=8)
    assert found.tokens == len(ids) - 1
    whole = math.exp(-by_hand(model, ids).mean())
    assert whole < found.value < 1.5 * whole  # less context predicts a little worse
    assert score.perplexity(model, STORY, ctx=len(ids), stride=1).value == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize(
    ("text", "ctx", "stride"), [(STORY, 2, 0), (STORY, 1024, 0), ("short", 64, 0), (STORY, 32, 32)]
)
def test_windows_that_make_no_sense(model: bitgen.Model, text: str, ctx: int, stride: int) -> None:
    with pytest.raises(BitgenError, match=r"window|stride"):
        score.perplexity(model, text, ctx, stride)


def test_the_command(tmp_path: Path) -> None:
    path = tmp_path / "story.txt"
    path.write_text(STORY)
    out = CliRunner().invoke(cli.main, ["perplexity", "-f", str(path), "--ctx", "32", "--json"])
    assert out.exit_code == 0, out.output
    assert 1 < json.loads(out.stdout)["value"] < 20
    path.write_bytes(b"\xff\xfe caf\xe9")
    out = CliRunner().invoke(cli.main, ["perplexity", "-f", str(path)])
    assert out.exit_code == 1 and "UTF-8" in out.output


def test_generation_with_log_probabilities(model: bitgen.Model) -> None:
    plain = model.generate(STORY[:40], 12, temperature=0, repeat_penalty=1, stop=False)
    told = model.generate(STORY[:40], 12, temperature=0, repeat_penalty=1, stop=False, logprobs=3)
    assert list(plain) == list(told)
    assert [c.token for c in told.choices] == told.token_ids == plain.token_ids
    wanted = by_hand(model, told.history)[len(told.prompt_ids) - 1 :]
    assert np.allclose([c.logprob for c in told.choices], wanted, rtol=0, atol=1e-5)
    for choice in told.choices:
        assert choice.likeliest[0] == (choice.token, choice.logprob)  # greedy
        assert [p for _, p in choice.likeliest] == sorted((p for _, p in choice.likeliest), reverse=True)
    with pytest.raises(BitgenError, match="one of the two"):
        model.generate("a", 4, logprobs=1, prompt_lookup=4)


TASK = """
task: which_word
dataset_path: json
dataset_kwargs:
  data_files: {data}
test_split: train
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
metric_list:
  - metric: acc
"""
QUESTIONS = [
    ("Once upon a", ["time", "purple", "seven"], 0),
    ("Lily wanted to play with her", ["the of", "friends", "was is"], 1),
    ("They were very", ["ran", "door", "happy"], 2),
    ("She went to the", ["park", "because", "wanted"], 0),
]


def test_the_evaluation_harness(tmp_path: Path, model: bitgen.Model) -> None:
    """The real package, on a task of our own: its answers are those of the log probabilities."""
    pytest.importorskip("lm_eval")
    import lm_eval
    from lm_eval.tasks import TaskManager

    from bitgen.integrations.lm_eval import BitgenLM

    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps({"text": t, "choices": c, "label": label}) + "\n" for t, c, label in QUESTIONS))
    (tmp_path / "which_word.yaml").write_text(TASK.format(data=data))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    results = lm_eval.simple_evaluate(
        "bitgen", "threads=2,max_length=64", tasks=["which_word"], task_manager=manager, bootstrap_iters=0
    )  # fmt: skip
    assert results["results"]["which_word"]["acc,none"] == 1.0
    for sample, (text, choices, _) in zip(results["samples"]["which_word"], QUESTIONS, strict=True):
        for (total, greedy), choice in zip(sample["filtered_resps"], choices, strict=True):
            wanted = model.score(" " + choice, text)
            assert float(total) == pytest.approx(wanted.total, abs=1e-4)
            assert greedy in (bool(wanted.greedy.all()), str(bool(wanted.greedy.all())))
    assert BitgenLM(threads=2).max_length == model.shape.context


def test_rolling_windows_and_generation_for_the_harness(model: bitgen.Model) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    from bitgen.integrations.lm_eval import BitgenLM

    def ask(kind: str, *arguments: object) -> Instance:
        return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)

    (total,) = BitgenLM(threads=2).loglikelihood_rolling([ask("loglikelihood_rolling", STORY)], disable_tqdm=True)
    assert total == pytest.approx(model.score(STORY).total, abs=1e-4)
    (less,) = BitgenLM(threads=2, max_length=16).loglikelihood_rolling([ask("loglikelihood_rolling", STORY)])
    assert less < total
    how = {"until": ["."], "max_gen_toks": 40}
    (text,) = BitgenLM(threads=2).generate_until([ask("generate_until", STORY[:60], how)], disable_tqdm=True)
    greedy = "".join(model.generate(STORY[:60], 40, temperature=0, repeat_penalty=1))
    assert "." in greedy and text == greedy.partition(".")[0]
