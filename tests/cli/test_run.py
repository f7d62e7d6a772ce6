"""bitgen run: where prompts come from, what ends a text, results as JSON, batches, prompt caches."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import bitgen
from bitgen import cli
from bitgen.engine.chat import ChatTemplate
from bitgen.text.chat_templates import NAMED

GREEDY = ("--temp", "0")
TALE = "Once upon a time, there was a little girl named Lily."


@pytest.fixture(scope="module")
def model() -> bitgen.Model:
    return bitgen.Model.load()


def run(*args: str, stdin: str | None = None, code: int = 0) -> Result:
    result = CliRunner().invoke(cli.main, ["run", *args], input=stdin)
    assert result.exit_code == code, result.output
    return result


def test_a_prompt_from_a_file_is_the_prompt(tmp_path: Path) -> None:
    (tmp_path / "prompt").write_text(TALE + "\nShe")
    expected = run("-p", TALE + "\nShe", "-n", "8", *GREEDY).stdout
    assert run("-f", str(tmp_path / "prompt"), "-n", "8", *GREEDY).stdout == expected
    assert run("-f", "-", "-n", "8", *GREEDY, stdin=TALE + "\nShe").stdout == expected


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "give one of --prompt, --file and --batch"),
        (("-p", "a", "-f", __file__), "and --batch, not several"),
        (("-p", "a", "--batch", __file__), "and --batch, not several"),
        (("--batch", __file__, "--json"), "--batch goes without --json; each"),
        (("--batch", __file__, "--logprobs", "1", "--prompt-cache", "x"), "--prompt-cache, --logprobs"),
        (("-p", "a", "--parallel", "2"), "--parallel goes with --batch"),
        (("-p", "a", "--stop", "b", "--ignore-eos"), "give --stop or --ignore-eos"),
    ],
)
def test_what_cannot_be_done_together(args: tuple[str, ...], words: str) -> None:
    assert words in run("-m", "2B4T", "--yes", *args, code=2).output  # before it is downloaded


def test_numbers_that_cannot_be_meant(tmp_path: Path) -> None:
    for args, words in (
        (("--context", "513"), "context is 513, must be a whole number from 1 to 512"),
        (("--temp", "1e39"), "--temp: temperature is 1e+39"),
        (("--top-p", "1e-50"), "--top-p: top_p is 1e-50"),
        (("--repeat-penalty", "1e39"), "--repeat-penalty: repeat_penalty is 1e+39"),
    ):
        assert words in run("-p", "a", *args, code=1).output
    with_template = ("chat", "--chat-template", "chatml", "--context", "513")
    assert "context is 513, must be" in CliRunner().invoke(cli.main, with_template).output


def test_stop_strings(model: bitgen.Model) -> None:
    whole = run("-p", TALE, "-n", "30", *GREEDY).stdout
    expected = "".join(model.generate(TALE, 30, temperature=0, stop=["named", " toys"]))
    found = run("-p", TALE, "-n", "30", *GREEDY, "--stop", "named", "--stop", " toys")
    assert found.stdout == f"{TALE}{expected}\n" and whole.startswith(found.stdout.removesuffix("\n"))
    assert "| stopped: stop string |" in found.stderr and len(found.stdout) < len(whole)


def test_a_context_that_was_full_is_said() -> None:
    prompt = "word " * 29
    found = run("-p", prompt, "-n", "50", "--context", "40", "--ignore-eos")
    assert "| stopped: context full |" in found.stderr and "of 50 tokens; --context up to 512 has" in found.stderr
    assert "the context of 40 tokens was full after" in found.stderr
    found = run("-p", "word " * 480, "-n", "500", "--ignore-eos")
    assert "of 500 tokens; the model has no larger one" in found.stderr
    assert "was full" not in run("-p", prompt, "-n", "3", "--context", "40").stderr


def test_one_object(model: bitgen.Model) -> None:
    found = run("-p", TALE, "-n", "6", "--seed", "3", "--json", "--logprobs", "2")
    facts = json.loads(found.stdout)
    generation = model.generate(TALE, 6, seed=3)
    text = "".join(generation)
    expected = {
        "text": text, "token_ids": generation.token_ids, "prompt_tokens": len(generation.prompt_ids), "tokens": 6,
        "stopped": "length", "seed": 3, "model": "stories",
    }  # fmt: skip
    assert {key: facts[key] for key in expected} == expected
    assert [choice["token"] for choice in facts["logprobs"]] == generation.token_ids
    assert all(len(choice["likeliest"]) == 2 for choice in facts["logprobs"])
    assert " " not in "".join(facts) and facts["prefill_s"] > 0 and not found.stderr


def test_quiet_is_the_text_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("-p", TALE, "-n", "4", "-q").stderr == ""
    monkeypatch.setenv("BITGEN_QUIET", "1")
    assert run("-p", TALE, "-n", "4").stderr == ""
    assert "was full" in run("-p", TALE, "-n", "90", "--context", "20", "--ignore-eos").stderr


def test_a_prompt_as_a_users_message(talker: Path) -> None:
    opened = bitgen.Model.load(talker)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello<|eot_id|>"}]
    for template in ("bitnet", "chatml"):
        ids = ChatTemplate(NAMED[template], opened.tokenizer).encode(messages)
        expected = "".join(opened.generate(ids, 8, temperature=0))
        named = () if template == "bitnet" else ("--chat-template", template)
        args = ("-m", str(talker), "-p", messages[1]["content"], "-n", "8", *GREEDY)
        assert run(*args, *named, "--system", "Be brief.").stdout == expected + "\n"
    alone = "".join(
        opened.generate(ChatTemplate(NAMED["chatml"], opened.tokenizer).encode(messages[1:]), 8, temperature=0)
    )
    assert run(*args, "--chat-template", "chatml").stdout == alone + "\n"
    assert "carries no chat template" in run("-p", "Hello", "--system", "", code=1).output


# ---- batches ---------------------------------------------------------------------------------------------------


def lines(*asked: Any) -> str:
    return "\n".join(each if isinstance(each, str) else json.dumps(each) for each in asked)


@pytest.mark.parametrize("parallel", ["1", "3"])
def test_a_batch_gives_what_each_would_be_alone(parallel: str, model: bitgen.Model, tmp_path: Path) -> None:
    asked = [
        {"prompt": TALE, "id": "a"}, {"prompt": "The dog", "max_tokens": 3, "temperature": 0, "id": 7},
        {"prompt": "Tom", "seed": 9, "top_k": 3, "stop": [" was"]}, {"prompt": "Once", "stop": False, "max_tokens": 0},
    ]  # fmt: skip
    (tmp_path / "asked").write_text(lines(*asked, "", "  "))
    found = run("--batch", str(tmp_path / "asked"), "--parallel", parallel, "-n", "12", "--seed", "5")
    results = list(map(json.loads, found.stdout.splitlines()))
    assert len(results) == len(asked)
    for each, result in zip(asked, results, strict=True):
        own = {key: value for key, value in each.items() if key not in ("prompt", "id")}
        alone = model.generate(each["prompt"], **{"max_tokens": 12, "seed": 5, **own})
        text = "".join(alone)
        assert result == {
            **({"id": each["id"]} if "id" in each else {}), "text": text, "token_ids": alone.token_ids,
            "prompt_tokens": len(alone.prompt_ids), "stopped": alone.timing.stopped, "seed": own.get("seed", 5),
        }  # fmt: skip


def test_one_text_of_a_batch_that_fails_does_not_keep_the_others(tmp_path: Path) -> None:
    asked = lines({"prompt": "word " * 40, "id": "long"}, {"prompt": "Once"})
    found = run("--batch", "-", "-n", "2", "--context", "20", stdin=asked, code=1)
    long, short = map(json.loads, found.stdout.splitlines())
    assert long == {"id": "long", "error": long["error"]} and "the context holds 20" in long["error"]
    assert short["stopped"] == "length"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"prompt": "a", "temprature": 0}, "there is no 'temprature'; the keys are prompt, id, max_tokens, stop"),
        ({"text": "a"}, "there is no 'text'"),
        ({}, "there is no prompt, must be a text"),
        ({"prompt": 5}, "the prompt is 5, must be a text"),
        ({"prompt": "a", "id": [1]}, "the id is [1], must be"),
        ({"prompt": "a", "temperature": -1}, "temperature is -1"),
        ({"prompt": "a", "max_tokens": "9"}, "max_tokens is '9'"),
        ({"prompt": "a", "max_tokens": True}, "max_tokens is True"),
        ({"prompt": "a", "stop": 1}, "stop is 1"),
        ({"prompt": "a", "stop": ""}, "an empty string"),
        ({"prompt": "word " * 600}, "the context holds 512"),
        ('{"prompt": "\\ud800"}', "surrogate"),
        ("[1]", "not a JSON object"),
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
    ],
)
def test_a_line_of_a_batch_that_is_refused(line: Any, words: str) -> None:
    found = run("--batch", "-", "-n", "2", stdin=lines({"prompt": "Once"}, "", line), code=1)
    assert f"standard input, line 3: {words}" in found.output or (
        found.output.startswith("bitgen: standard input, line 3") and words in found.output
    )
    assert found.stdout == ""


def test_a_batch_of_nothing() -> None:
    assert run("--batch", "-", stdin="\n").stdout == ""


# ---- prompt caches ---------------------------------------------------------------------------------------------


def test_a_prompt_cache_saves_work_and_changes_nothing(tmp_path: Path) -> None:
    kept, args = str(tmp_path / "kept"), ("-n", "8", "--seed", "4", "--json")

    def facts(*more: str) -> tuple[str, int]:
        found = json.loads(run(*more, *args).stdout)
        return found["text"], found["prefill_tokens"]

    (plain, whole), (longer, _) = facts("-p", TALE), facts("-p", TALE + " She had")
    assert facts("-p", TALE, "--prompt-cache", kept) == (plain, whole)
    assert facts("-p", TALE, "--prompt-cache", kept) == (plain, 1)
    text, computed = facts("-p", TALE + " She had", "--prompt-cache", kept)
    assert text == longer and computed < whole
    assert facts("-p", "Tom", "--prompt-cache", kept)[0] == facts("-p", "Tom")[0]


def test_prompt_caches_that_are_refused(tmp_path: Path, talker: Path) -> None:
    kept = tmp_path / "kept"
    run("-m", str(talker), "-p", TALE, "-n", "2", "--prompt-cache", str(kept))
    before = kept.read_bytes()
    for args, words in (
        (("--cache", "int8", "-m", str(talker)), "keys and values of another type"),
        (("--head", "f16"), "of another model"),
        (("-m", str(talker), "--context", "9"), "this session's context 9"),
    ):
        found = run("-p", "a", "-n", "1", *args, "--prompt-cache", str(kept), code=1)
        assert words in found.output and "name another file, or remove this one" in found.output
    kept.write_bytes(before[:-1])
    assert "is damaged" in run("-m", str(talker), "-p", "a", "--prompt-cache", str(kept), code=1).output
    for place in (talker, tmp_path, Path(os.devnull)):
        assert run(
            "-m", str(talker), "-p", "a", "--prompt-cache", str(place), code=2 if place == tmp_path else 1
        ).output
    assert "--prompt-cache" in run("-p", "a", "--prompt-cache", str(tmp_path), code=2).output
