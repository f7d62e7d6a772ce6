"""Chats at a terminal, which is a screen that the tests read: typing, pastes, commands, interrupts, Markdown."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from screens import Terminal, chat

STORY = "Tom has a dog. The dog is big and likes to run. " * 5


@pytest.fixture(autouse=True)
def _own_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is the tests'; what is typed is in a history of this test."""
    history = Path(os.environ["BITGEN_CACHE"]) / "history" / "chat.jsonl"
    history.unlink(missing_ok=True)


def messages(terminal: Terminal, file: Path) -> list[list[str]]:
    """The conversation, as /save writes it."""
    assert f"saved in {file.name}" in terminal.say(f"/save {file}").replace("\n", "").replace(f"{file.parent}/", "")
    found = json.loads(file.read_text())
    return [[m["role"], m["content"]] for m in found["messages"]]


def test_a_paste_is_one_message_and_so_is_what_is_typed_in_lines(talker: Path, tmp_path: Path) -> None:
    with chat(talker) as terminal:
        terminal.prompt()
        terminal.paste("one\r\n  two\x1b[31m\nthree")
        terminal.wait("three")
        assert "Yes." not in terminal.text
        terminal.say("")
        terminal.send("four\x1b\rfive")
        terminal.say("")
        terminal.send('"""/bye\r')
        terminal.wait(lambda: terminal.line == "...")
        terminal.say('six"""')
        assert messages(terminal, tmp_path / "c") == [
            ["user", "one\n  two\x1b[31m\nthree"], ["assistant", "Yes."],
            ["user", "four\nfive"], ["assistant", "Yes."],
            ["user", "/bye\nsix"], ["assistant", "Yes."],
        ]  # fmt: skip
        terminal.send("\x04")
        assert terminal.end() == 0
        assert b"\x1b[31mthree" not in terminal.raw


def test_wide_and_combined_characters(talker: Path, tmp_path: Path) -> None:
    text = "漢字 cafe\u0301 👩‍💻 עברית"
    with chat(talker, answers=[text]) as terminal:
        terminal.prompt()
        terminal.say(text)
        assert messages(terminal, tmp_path / "c") == [["user", text], ["assistant", text]]


def test_what_is_typed_is_edited_by_characters_and_must_be_text(talker: Path, tmp_path: Path) -> None:
    with chat(talker) as terminal:
        terminal.prompt()
        terminal.process.send(b"bad \xff\r")
        terminal.wait("bitgen: the message is not UTF-8 text (invalid start byte at byte 4)")
        terminal.prompt()
        terminal.send("漢字x\x7f\x7f")
        terminal.wait(lambda: terminal.line == ">>> 漢")
        terminal.say("\x1b[D字")
        assert messages(terminal, tmp_path / "c")[0] == ["user", "字漢"]
        assert b"\x1b[6n" not in terminal.raw


def test_the_history_of_another_run(talker: Path) -> None:
    with chat(talker) as terminal:
        terminal.prompt()
        terminal.say("first message")
        terminal.say("/clear")
        terminal.send("\x04")
        assert terminal.end() == 0
    with chat(talker, "--no-history") as terminal:
        terminal.prompt()
        terminal.send("\x1b[A")
        terminal.say("second message")
        assert "first" not in terminal.text
        terminal.send("\x1b[A")
        terminal.wait(lambda: terminal.line == ">>> second message")
    with chat(talker, BITGEN_NO_HISTORY="1") as terminal:
        terminal.prompt()
        terminal.say("third message")
    with chat(talker) as terminal:
        terminal.prompt()
        terminal.send("\x1b[A")
        terminal.wait(lambda: terminal.line == ">>> /clear")
        terminal.send("\x1b[A")
        terminal.wait(lambda: terminal.line == ">>> first message")


def test_ctrl_c_while_a_message_is_read_leaves_the_conversation_as_it_was(talker: Path, tmp_path: Path) -> None:
    with chat(talker, READING="2") as terminal:
        terminal.prompt()
        terminal.send("Hello\r")
        terminal.wait("reading the message")
        terminal.send("\x03")
        said = terminal.prompt()
        assert "(stopped)" in said and "^C" not in said and "tok/s" not in said and "reading" not in said
        assert messages(terminal, tmp_path / "c") == []
        assert "Yes." in terminal.say("Hello")
        terminal.send("/retry\r")
        terminal.wait(lambda: terminal.line.startswith("reading the message"))
        terminal.send("\x03")
        terminal.wait(lambda: terminal.text.count("(stopped)") == 2)
        terminal.prompt()
        assert messages(terminal, tmp_path / "c") == [["user", "Hello"], ["assistant", "Yes."]]
        assert b"^C" not in terminal.raw


def test_ctrl_c_in_an_answer_and_what_is_typed_meanwhile(talker: Path, tmp_path: Path) -> None:
    with chat(talker, answers=[STORY, "No."], PAUSE="0.05") as terminal:
        terminal.prompt()
        terminal.send("A story\r")
        terminal.wait("Tom has a dog")
        terminal.send("typed ahead")
        terminal.paste("\npasted\nahead")
        terminal.send("\x03")
        terminal.wait("... ahead")
        assert "(stopped)\n" in terminal.text and b"^C" not in terminal.raw
        assert terminal.raw.count(b"typed ahead") == 1  # not while it was typed
        assert terminal.text.count("typed ahead") == 1
        terminal.say("")
        found = messages(terminal, tmp_path / "c")
        assert found[0] == ["user", "A story"] and STORY.startswith(found[1][1]) and len(found[1][1]) < len(STORY)
        assert found[2] == ["user", "typed ahead\npasted\nahead"]


def test_an_empty_line_and_ctrl_c_on_it(talker: Path) -> None:
    with chat(talker) as terminal:
        terminal.prompt()
        assert "tok/s" not in terminal.say("")
        terminal.send("thrown away\x03")
        terminal.wait("(Ctrl-D or /bye leaves)")
        terminal.prompt()
        terminal.send("/exit\r")
        assert terminal.end() == 0


def test_retry_edit_and_settings(talker: Path, tmp_path: Path) -> None:
    answers = ["One.", "Two.", "Three."]
    with chat(talker, "--seed", "7", answers=answers) as terminal:
        terminal.prompt()
        assert "there is no message yet" in terminal.say("/retry")
        assert "seed 7\n" in terminal.say("Hello")
        again = terminal.say("/retry")
        assert "Two." in again and "another seed" in again and "seed 1000010\n" in again
        assert messages(terminal, tmp_path / "c") == [["user", "Hello"], ["assistant", "Two."]]
        terminal.send("/edit\r")
        terminal.wait(lambda: terminal.line == ">>> Hello")
        terminal.say(" you")
        assert messages(terminal, tmp_path / "c") == [["user", "Hello you"], ["assistant", "Three."]]
        terminal.send("/edit\r")
        terminal.wait(lambda: terminal.line == ">>> Hello you")
        terminal.send("\x03")
        terminal.wait("(the message stays as it was)")
        terminal.prompt()
        assert len(messages(terminal, tmp_path / "c")) == 2
        assert "temp is 0.0" in terminal.say("/set temp 0")
        assert "top-k is 7" in terminal.say("/set top_k 7") and "temp is 0.0" in terminal.say("/set temperature 0")
        assert "every seed gives the same answer" in terminal.say("/retry")
        assert "repeat-penalty  1.1" in terminal.say("/set")
        assert "temperature" in terminal.say("/set temp -1") and "'x' is no number" in terminal.say("/set top-k x")
        assert "there is no 'nonsense'" in terminal.say("/set nonsense 1")
        assert "max-tokens is 1 from now on" in terminal.say("/set max-tokens 1")
        assert "(cut after 1 token;" in terminal.say("Go on")


def test_edit_in_an_editor(talker: Path, tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text(f"#!{sys.executable}\nimport sys\nopen(sys.argv[1], 'a').write('and more \\x1b[2J')\n")
    editor.chmod(0o700)
    with chat(talker, EDITOR=str(editor)) as terminal:
        terminal.prompt()
        terminal.say("Hello")
        assert r"and more \x1b[2J" in terminal.say("/edit")
        assert messages(terminal, tmp_path / "c")[0] == ["user", "Hello\nand more \x1b[2J"]
    with chat(talker, EDITOR="false") as terminal:
        terminal.prompt()
        terminal.say("Hello")
        assert "bitgen: /edit: false: Editing failed" in terminal.say("/edit")


def test_an_answer_with_markdown_and_escape_sequences(talker: Path) -> None:
    answer = "# Title\n\n* **bold** \x1b[2Jtext\x1b]0;title\x07\n\n```c\nint x = 1; // <stdio.h>\n```\n"
    with chat(talker, answers=[answer]) as terminal:
        terminal.prompt()
        said = terminal.say("Hello")
        assert r" • bold \x1b[2Jtext\x1b]0;title\x07" in said and "# Title" not in said
        assert "\nTitle\n" in said and "```c\nint x = 1; // <stdio.h>\n```" in said
        assert b"\x1b[2J" not in terminal.raw and b"\x1b]0" not in terminal.raw
        assert "tokens of context, seed" in said
    with chat(talker, "--plain", answers=[answer]) as terminal:
        terminal.prompt()
        said = terminal.say("Hello")
        assert "# Title" in said and r"* **bold** \x1b[2Jtext" in said
        assert b"\x1b]0" not in terminal.raw


def test_a_window_that_changes(talker: Path) -> None:
    with chat(talker, answers=[STORY + "\n\nThe end."], PAUSE="0.02") as terminal:
        terminal.prompt()
        terminal.send("A story\r")
        terminal.wait("likes to run")
        terminal.resize(40, 12)
        said = terminal.prompt()
        assert "The end." in said
        terminal.resize(100, 30)
        terminal.say("More")
        assert terminal.text.count("The end.") == 2


def test_completion(talker: Path) -> None:
    with chat(talker) as terminal:
        terminal.prompt()
        terminal.send("/cl\t")
        terminal.wait(lambda: terminal.line == ">>> /clear")
        terminal.send("\x15/se\t")
        terminal.wait(lambda: terminal.line == ">>> /set")
        terminal.send(" mi\t")
        terminal.wait(lambda: terminal.line == ">>> /set min-p")
        terminal.send("\x15a\tb")
        terminal.wait(lambda: terminal.line.startswith(">>> a") and terminal.line.endswith("b"))


def test_turns_that_will_be_forgotten_are_announced(talker: Path) -> None:
    with chat(talker, "--context", "96", "-n", "16", answers=["It is."]) as terminal:
        terminal.prompt()
        said = [terminal.say(f"Number {n} is a very nice number, said Tom.") for n in range(6)]
    warned = next(i for i, each in enumerate(said) if "until the oldest turn is forgotten" in each)
    forgot = next(i for i, each in enumerate(said) if "(the context is full: the oldest 1 turn will be forgot" in each)
    assert 0 < warned < forgot


def test_an_end_by_a_signal_restores_the_terminal(talker: Path) -> None:
    with chat(talker, answers=[STORY], PAUSE="0.1") as terminal:
        terminal.prompt()
        terminal.send("A story\r")
        terminal.wait("Tom has")
        terminal.process.kill(15)
        assert terminal.end() == 143
        assert terminal.raw.rindex(b"\x1b[?2004l") > terminal.raw.rindex(b"\x1b[?2004h")
        assert terminal.raw.rindex(b"\x1b[?25h") > terminal.raw.rindex(b"\x1b[?25l")
