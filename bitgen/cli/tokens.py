"""tokenize: the tokens of a text, and the text of tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from bitgen import api
from bitgen.cli.console import say, stream, warn
from bitgen.cli.located import model_option
from bitgen.cli.options import TEXT_FILE, Text
from bitgen.cli.streams import read_text
from bitgen.errors import BitgenError, brief
from bitgen.text.tokenizer import CONTROL, Tokenizer


@click.command()
@click.argument("words", metavar="[TEXT]", type=Text(), nargs=-1)
@model_option
@click.option("-f", "--file", type=TEXT_FILE, help="Take the text, or the ids, from a file; -: standard input.")
@click.option("--decode", is_flag=True, help="Turn ids, given as arguments or in a file, back into text.")
@click.option("--ids", is_flag=True, help="Print only the ids, on one line.")
@click.option("--json", "as_json", is_flag=True, help="Print one object.")
@click.option("--no-bos", is_flag=True, help="Do not begin with the begin-of-text token.")
@click.option("--special", is_flag=True, help="Take the spelling of a control token, like <|eot_id|>, for that "
              "token, as `run` does; without this it is text, as in `chat`. With --decode: show them.")  # fmt: skip
def tokenize(words: tuple[str, ...], model: str | None, file: str | None, decode: bool, ids: bool, as_json: bool,
             no_bos: bool, special: bool) -> None:  # fmt: skip
    """Show the tokens of a text: their ids and the pieces of text that they stand for. `tokenize --decode ID...` turns
    ids back into text."""
    if bool(words) == bool(file):
        raise click.UsageError(f"give {'ids' if decode else 'a text'}, or --file with {'them' if decode else 'one'}")
    if decode and (ids or no_bos):
        raise click.UsageError("--decode goes without --ids and --no-bos")
    if not decode and len(words) > 1:
        raise click.UsageError(f"give one text, in quotes, not {len(words)}")
    if ids and as_json:
        raise click.UsageError("give --ids or --json, not both")
    given = read_text(file) if file else " ".join(words)
    tokenizer = api.tokenizer(model)
    if decode:
        _decode(tokenizer, _ids_of(given, len(tokenizer)), special, as_json)
        return
    found = tokenizer.encode(given, add_bos=False if no_bos else None, parse_special=special)
    if ids:
        say(" ".join(map(str, found)))
    elif as_json:
        say(json.dumps({"count": len(found), "tokens": [_token(tokenizer, id) for id in found]}))
    else:
        for line in _lines(tokenizer, found):
            say(line)


def _ids_of(text: str, vocab: int) -> list[int]:
    """Ids between blanks, commas or brackets."""
    found = []
    for word in text.translate(str.maketrans(",[]", "   ")).split():
        if not (word.isascii() and word.isdigit()) or len(word) > 10 or int(word) >= vocab:
            raise BitgenError(f"{brief(word)!r} is no id of this model, which has tokens 0 to {vocab - 1}")
        found.append(int(word))
    return found


def _decode(tokenizer: Tokenizer, ids: list[int], special: bool, as_json: bool) -> None:
    shows = [special and _is_control(tokenizer, id) for id in ids]
    pieces = [
        (tokenizer.word(id).encode() if shown else tokenizer.piece(id)) for id, shown in zip(ids, shows, strict=True)
    ]
    data = b"".join(pieces)
    text = data.decode(errors="replace")
    if tokenizer.strips_first_space and not any(shows[:1]):
        text = text.removeprefix(" ")
    if data != data.decode(errors="replace").encode():
        warn("some bytes of these tokens are no whole characters; each such place is shown as U+FFFD")
    if as_json:
        say(json.dumps({"count": len(ids), "text": text}))
    else:
        stream(f"{text}\n")


def _lines(tokenizer: Tokenizer, ids: list[int]) -> Iterator[str]:
    """An id and its piece on each line, in quotes; a control token by its name, without."""
    for id in ids:
        token = _token(tokenizer, id)
        piece = token["piece"]
        shown = piece if token["control"] else repr(tokenizer.piece(id))[1:] if piece is None else repr(piece)
        yield f"{id:>8}  {shown}"
    yield f"{len(ids)} token{'' if len(ids) == 1 else 's'}"


def _token(tokenizer: Tokenizer, id: int) -> dict[str, Any]:
    """A token for JSON. piece: None where its bytes are no whole characters."""
    data, control = tokenizer.piece(id), _is_control(tokenizer, id)
    try:
        piece = tokenizer.word(id) if control else data.decode()
    except UnicodeDecodeError:
        piece = None
    return {"id": id, "piece": piece, "bytes": data.hex(), "control": control}


def _is_control(tokenizer: Tokenizer, id: int) -> bool:
    return bool(tokenizer.vocabulary.types[id] == CONTROL)
