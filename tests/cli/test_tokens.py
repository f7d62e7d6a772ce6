"""tokenize: texts to tokens and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from gguf_files import contents, store
from tokenizer_files import TEXTS, piece_keys, trained_pieces

from bitgen import api, cli


def tokenize(*args: str, stdin: bytes | None = None, code: int = 0) -> Result:
    result = CliRunner().invoke(cli.main, ["tokenize", *args], input=stdin)
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a SentencePiece vocabulary, whose tensors are others': it need not run."""
    folder = tmp_path_factory.mktemp("pieces")
    metadata, tensors = contents()
    return store(folder / "m.gguf", metadata | piece_keys(trained_pieces(folder)), tensors)


def test_a_text_as_lines() -> None:
    t = api.tokenizer()
    lines = tokenize("Once upon a <|eot_id|>").stdout.splitlines()
    ids = t.encode("Once upon a <|eot_id|>", parse_special=False)
    assert lines[0] == f"{t.bos:>8}  <|begin_of_text|>" and lines[-1] == f"{len(ids)} tokens"
    assert lines[1] == f"{ids[1]:>8}  'Once'" and len(lines) == len(ids) + 1
    special = tokenize("--no-bos", "--special", "<|eot_id|>").stdout.splitlines()
    assert special == [f"{t.eot:>8}  <|eot_id|>", "1 token"]


def test_a_text_as_json() -> None:
    found = json.loads(tokenize("--json", "漢字").stdout)
    assert found["count"] == len(found["tokens"])
    assert b"".join(bytes.fromhex(each["bytes"]) for each in found["tokens"]).decode() == "漢字"
    assert found["tokens"][0]["control"] and any(each["piece"] is None for each in found["tokens"])


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", ["shipped", "pieces"])
def test_ids_come_back_as_the_text(text: str, kind: str, pieces: Path, tmp_path: Path) -> None:
    model = ("-m", str(pieces)) if kind == "pieces" else ()
    if kind == "pieces":
        text = text.replace("▁", "_")  # is a space in such a vocabulary
    text = text.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff")  # as files are read
    file, ids = tmp_path / "text", tmp_path / "ids"
    file.write_text(text, encoding="utf-8")
    ids.write_text(tokenize(*model, "--ids", "-f", str(file)).stdout)
    assert list(map(int, ids.read_text().split())) == api.tokenizer(pieces if model else None).encode(
        text, parse_special=False
    )
    assert tokenize(*model, "--decode", "-f", str(ids)).stdout == text + "\n"
    assert tokenize(*model, "--decode", "-f", "-", stdin=ids.read_bytes()).stdout == text + "\n"


def test_control_tokens_are_shown_where_they_are_asked_for() -> None:
    t = api.tokenizer()
    ids = [str(id) for id in (t.bos, t.eot)]
    assert tokenize("--decode", *ids).stdout == "\n"
    assert tokenize("--decode", "--special", *ids).stdout == "<|begin_of_text|><|eot_id|>\n"
    assert json.loads(tokenize("--decode", "--json", f"[{', '.join(ids)}]").stdout) == {"count": 2, "text": ""}


def test_bytes_that_are_no_characters_are_said() -> None:
    ids = api.tokenizer().encode("é", add_bos=False)
    half = next(id for id in range(256) if api.tokenizer().piece(id) == "é".encode()[:1])
    found = tokenize("--decode", str(half))
    assert found.stdout == "\ufffd\n" and "no whole characters" in found.stderr
    assert "U+FFFD" not in tokenize("--decode", *map(str, ids)).stderr


@pytest.mark.parametrize(
    ("args", "words", "code"),
    [
        ((), "give a text, or --file with one", 2),
        (("--decode",), "give ids, or --file with them", 2),
        (("a", "-f", __file__), "give a text, or --file", 2),
        (("two", "texts"), "give one text, in quotes, not 2", 2),
        (("--decode", "--ids", "1"), "--decode goes without --ids and --no-bos", 2),
        (("--ids", "--json", "a"), "not both", 2),
        (("--decode", "one"), "'one' is no id of this model, which has tokens 0 to", 1),
        (("--decode", "99999999999"), "'99999999999' is no id", 1),
        (("--decode", "²"), "is no id", 1),
        (("-m", "nowhere.gguf", "a"), "nowhere.gguf", 1),
    ],
)
def test_what_is_refused(args: tuple[str, ...], words: str, code: int) -> None:
    assert words in tokenize(*args, code=code).output
