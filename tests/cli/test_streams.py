"""Standard streams that are closed, full, of another encoding, or not UTF-8: text or a sentence, and no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bitgen.cli.streams import read_text, utf8
from bitgen.errors import BitgenError

BITGEN = [sys.executable, "-m", "bitgen"]
LATIN1 = b"one\ntwo \xe9\n"
CHAT = ("chat", "--chat-template", "chatml", "-n", "4", "--temp", "0")


QUIET = {"BITGEN_QUIET": "1"}
"""On a slow machine stages would be named on stderr."""


def bitgen(
    *args: str | bytes, redirect: str = "", stdin: bytes = b"", encoding: str = "utf-8", unbuffered: bool = False
) -> subprocess.CompletedProcess[bytes]:
    """Run a command in a shell that redirects its streams, with output buffered as users have it, or unbuffered as
    containers do."""
    surroundings = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    env = {**surroundings, **QUIET, "PYTHONIOENCODING": encoding, "PYTHONUNBUFFERED": "1" * unbuffered}
    command = ["sh", "-c", f'exec "$@" {redirect}', "sh", *BITGEN, *args]
    out = subprocess.run(command, input=stdin, capture_output=True, timeout=300, env=env)
    assert b"Traceback" not in out.stderr and b"Exception ignored" not in out.stderr, out.stderr.decode()
    return out


def assert_sentence(out: subprocess.CompletedProcess[bytes], *words: str) -> None:
    (said,) = [line for line in out.stderr.decode().splitlines() if line.startswith("bitgen: ")]
    assert out.returncode == 1 and all(word in said for word in words), said


@pytest.mark.parametrize(
    ("args", "redirect"),
    [
        (("--version",), ">&-"),
        (("gen", "--model", "stories"), "2>&-"),
        (("run", "-p", "Hello", "-n", "1"), ">&-"),
        (("run", "-p", "Hello", "-n", "1"), ">&- 2>&- <&-"),
    ],
)
def test_closed_outputs_are_no_error(args: tuple[str, ...], redirect: str) -> None:
    assert bitgen(*args, redirect=redirect).returncode == 0


@pytest.mark.parametrize("args", [("run", "-p", "-"), ("embed",), ("perplexity", "-f", "-"), CHAT])
def test_a_closed_input_is_a_sentence(args: tuple[str, ...]) -> None:
    assert_sentence(bitgen(*args, redirect="<&-"), "standard input is closed")


@pytest.mark.parametrize("args", [("run", "-p", "-"), CHAT])
def test_an_input_that_cannot_be_read_is_a_sentence(args: tuple[str, ...]) -> None:
    assert_sentence(bitgen(*args, redirect="0>/dev/null"), "standard input cannot be read", "Bad file descriptor")


@pytest.mark.parametrize(
    ("args", "encoding"),
    [(("run", "-p", "-"), "utf-8"), (("embed",), "latin-1"), (("perplexity", "-f", "-"), "utf-8:surrogateescape")],
)
def test_an_input_that_is_not_utf8_is_a_sentence(args: tuple[str, ...], encoding: str) -> None:
    out = bitgen(*args, stdin=LATIN1, encoding=encoding)
    assert_sentence(out, "standard input is not UTF-8 text", "at byte 8")
    assert out.stdout == b""


@pytest.mark.parametrize(
    ("args", "name"),
    [
        (("run", "-p", b"two \xe9"), "--prompt"),
        (("embed", "one", b"two \xe9"), "TEXTS"),
        (("chat", "--system", b"two \xe9"), "--system"),
    ],
)
def test_an_argument_that_is_not_utf8_is_a_sentence(args: tuple[str | bytes, ...], name: str) -> None:
    assert_sentence(bitgen(*args), name, "is not UTF-8 text", "at byte 4")


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_a_message_that_is_not_utf8_has_no_answer_and_others_have(encoding: str) -> None:
    out = bitgen(*CHAT, stdin=b"hello\nbad \xff\nthere\n", encoding=encoding)
    assert_sentence(out, "the message is not UTF-8 text", "at byte 4")
    assert out.stdout.count(b"\n") == 2 and out.stderr.count(b"decode 4 tokens") == 2


def test_a_character_that_the_output_lacks_is_a_question_mark() -> None:
    args = ("run", "-p", "caf\u00e9 \u2019", "-n", "0")
    assert bitgen(*args, encoding="latin-1").stdout.decode("latin-1") == "caf\u00e9 ?\n"
    assert bitgen(*args, encoding="latin-1:surrogateescape").stdout.decode("latin-1") == "caf\u00e9 ?\n"
    out = bitgen("bench", "-t", "1", "--prompt", "0", "--gen", "2", "--profile", encoding="cp1252")
    assert out.returncode == 0 and b"?" in out.stdout  # the bars


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize(
    "args", [("--help",), ("gen", "--model", "stories"), ("run", "-p", "One", "-n", "2"), ("tokenize", "--decode", "1")]
)
@pytest.mark.parametrize("unbuffered", [False, True])
def test_a_full_output_is_a_sentence(args: tuple[str, ...], unbuffered: bool) -> None:
    out = bitgen(*args, redirect=">/dev/full", unbuffered=unbuffered)
    assert_sentence(out, "standard output: No space left on device")


@pytest.mark.parametrize(
    "args", [("--help",), ("gen", "--model", "2B4T"), ("bench", "-t", "1", "--prompt", "0", "--gen", "2")]
)
def test_a_reader_that_has_gone_is_no_error(args: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    out = subprocess.run(
        [*BITGEN, *args], stdout=writer, stderr=subprocess.PIPE, timeout=300, env={**os.environ, **QUIET}
    )
    os.close(writer)
    assert (out.returncode, out.stderr) == (0, b"")


def test_texts_are_utf8_without_a_mark_and_with_plain_ends_of_lines(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthr\xc3\xa9e \xe2\x80\xa8\x0b")
    assert read_text(str(file)) == "one\ntwo\nthr\u00e9e \u2028\x0b"
    assert bitgen("run", "-p", "-", "-n", "0", stdin=b"\xef\xbb\xbfone\r\n").stdout == b"one\n\n"
    for data, reason in ((LATIN1, "byte 8"), ("one".encode("utf-16"), "byte 0"), (b"a\r\nb\xed\xa0\x80", "byte 4")):
        file.write_bytes(data)
        with pytest.raises(BitgenError, match=f"^{file} is not UTF-8 text .*at {reason}"):
            read_text(str(file))
    with pytest.raises(BitgenError, match=r"cannot be read \(Is a directory"):
        read_text(str(tmp_path))
    with pytest.raises(BitgenError, match=r"^it is not UTF-8 text \(surrogates not allowed"):
        utf8("a\ud800", "it")  # as an argument on Windows can be
