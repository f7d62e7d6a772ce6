"""The commands of a conversation, from a pipe: what they do, what they say, what they refuse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bitgen.cli import transcripts
from bitgen.engine.generate import Timing
from bitgen.errors import BitgenError, FormatError

TURN = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes.\u2028\x1b"}]


def bitgen_chat(model: Path, *args: str, stdin: str, **env: str) -> subprocess.CompletedProcess[str]:
    script = Path(__file__).parents[1] / "labs" / "scripted_chat.py"
    command = [sys.executable, str(script), "chat", "-m", str(model), "-t", "1", *args]
    environment = {**os.environ, "ANSWERS": '["One.", "Two."]', **env}
    out = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, env=environment)
    assert "Traceback" not in out.stderr
    return out


def test_commands_without_a_terminal(talker: Path, tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    lines = ["Hello", f"/save {file}", "/clear", f"/load {file}", "/retry", "/edit", "/system Be brief.", "/?", "/exit"]
    out = bitgen_chat(talker, stdin="\n".join([*lines, "never"]))
    assert out.stdout == "One.\nTwo.\n" and out.returncode == 1  # /edit needs an editor
    for said in (
        f"(1 turn saved in {file})", "(1 turn forgotten; the conversation begins anew)", f"(1 turn from {file};",
        "(another answer, with another seed)", "/edit: without a terminal it needs $EDITOR",
        "(the system message is new; the conversation begins anew)", "/bye, /exit",
    ):  # fmt: skip
        assert said in out.stderr, said
    assert json.loads(file.read_text()) == {
        "model": "stories", "messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "One."}]
    }  # fmt: skip


def test_what_is_refused(talker: Path) -> None:
    lines = ["/nonsense", "/clear all", "/save", "/clear\nnow", "/load nowhere.json", "/usr/bin is a folder"]
    out = bitgen_chat(talker, stdin="\n".join(line.replace("\n", " ") for line in lines))
    assert out.stdout == "One.\n" and out.returncode == 1
    for said in ("/nonsense is no command", "/clear takes nothing after it", "/save needs a FILE", "nowhere.json: no "):
        assert said in out.stderr, said


def test_quotes_that_nobody_closes(talker: Path) -> None:
    out = bitgen_chat(talker, stdin='"""Hello\nthere')
    assert out.stdout == "One.\n" and 'ended before the """' in out.stderr and out.returncode == 0


def test_an_answer_that_is_cut_says_so(talker: Path) -> None:
    out = bitgen_chat(talker, "-n", "1", stdin="Hello\n")
    assert "(cut after 1 token; /set max-tokens N allows more)" in out.stderr
    out = bitgen_chat(talker, stdin="Hello\n")
    assert "(cut" not in out.stderr and "of 512 tokens of context, seed " in out.stderr


def test_a_rate_is_said_where_time_was_measured() -> None:
    assert Timing(prompt_tokens=5).rates == "prefill 5 tokens | decode 0 tokens"
    assert str(Timing(1.5, 5, 0.5, 1)) == "load 1.50 s | prefill 5 tokens at 10 tok/s | decode 1 tokens"
    assert Timing(0, 5, 0.5, 3, 0.25).rates.endswith("decode 3 tokens at 8.0 tok/s")


def test_a_conversation_comes_back_as_it_was(tmp_path: Path) -> None:
    for messages in ([], TURN, [{"role": "system", "content": ""}, *TURN, *TURN]):
        transcripts.save(tmp_path / "c", "tiny", messages)
        assert transcripts.load(tmp_path / "c") == messages


def test_what_holds_no_conversation_is_not_replaced(tmp_path: Path) -> None:
    for content in (b"notes", b"{}", b'{"messages": [1]}'):
        (tmp_path / "c").write_bytes(content)
        with pytest.raises(BitgenError, match="holds no conversation; choose another name"):
            transcripts.save(tmp_path / "c", "tiny", TURN)
        assert (tmp_path / "c").read_bytes() == content
    with pytest.raises(BitgenError, match="choose another name"):
        transcripts.save(tmp_path, "tiny", TURN)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "JSON"), ("[]", "not a JSON object"), ("[" * 100_000, "JSON"), ("{}", "no list of messages"),
        ({"messages": TURN, "\x1b[2J": 1}, r"has the key '\\x1b\[2J'"), ({"messages": "Hello"}, "no list"),
        ({"messages": [*TURN, "Hello"]}, "message 3 is 'Hello'"), ({"messages": TURN[:1]}, "has no answer"),
        ({"messages": [{"role": "user", "content": 1}]}, "the content of message 1 is 1"),
        ({"messages": [{"role": "user", "content": "", "name": ""}]}, "must have a role and a content, no more"),
        ({"messages": TURN[1:]}, "message 1 is of 'assistant', must be of the user"),
        ({"messages": [*TURN, {"role": "system", "content": ""}]}, "message 3 is of 'system'"),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "surrogate"),
    ],
)  # fmt: skip
def test_files_that_are_no_conversation(content: Any, words: str, tmp_path: Path) -> None:
    file = tmp_path / "c"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(FormatError, match=words):
        transcripts.load(file)


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "latin").write_bytes(b'{"messages": ["\xe9"]}')
    with pytest.raises(FormatError, match="not UTF-8 text"):
        transcripts.load(tmp_path / "latin")
    monkeypatch.setattr(transcripts, "MOST_BYTES", 10)
    with pytest.raises(FormatError, match="larger than"):
        transcripts.load(tmp_path / "latin")
    for path in (tmp_path, tmp_path / "nowhere", Path(os.devnull)):
        with pytest.raises(FormatError, match=f"{path}: "):
            transcripts.load(path)
