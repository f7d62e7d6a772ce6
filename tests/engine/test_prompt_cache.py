"""Prompt caches on disk: what follows has the same bits, and a file of anything else is refused with a sentence."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzzing
import numpy as np
import pytest
from hypothesis import strategies as st

import bitgen
from bitgen.compile import library
from bitgen.engine import prompt_cache
from bitgen.engine.opened import CACHES, Cache
from bitgen.errors import ArgumentError, BitgenError, EngineError, FormatError

TEXT = "Once upon a time, there was a little girl named Lily. She had a big red ball. " * 20


@pytest.fixture(scope="module")
def model() -> bitgen.Model:
    return bitgen.Model.load(threads=2)


@pytest.fixture(scope="module")
def ids(model: bitgen.Model) -> list[int]:
    return model.tokenizer.encode(TEXT)[:300]


@pytest.fixture(scope="module")
def file(model: bitgen.Model, ids: list[int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of seven tokens."""
    path = tmp_path_factory.mktemp("saved") / "seven.kv"
    with model.session(context=16) as session:
        session.append(ids[:7])
        session.save(path)
    return path


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("n", [1, 255, 256, 257])
def test_what_follows_has_the_same_bits(
    model: bitgen.Model, ids: list[int], tmp_path: Path, cache: Cache, n: int
) -> None:
    path = tmp_path / "prompt.kv"
    with model.session(context=n, cache=cache) as source:
        source.append(ids[:n])
        source.save(path)
        assert source.tokens == ids[:n]
    with model.session(context=300, cache=cache, threads=1) as session:
        session.append(ids[5:30])  # forgotten
        assert session.restore(path) == session.position == n and session.tokens == ids[:n]
        want = model.logits(ids, cache=cache)[n:]
        assert np.array_equal(session.forward(ids[n:], every=True), want)
        for how in ({"temperature": 0}, {"seed": 3}):
            session.restore(path)
            generation = model.generate(ids[: n + 4], 20, session=session, **how)
            text = "".join(generation)
            assert generation.timing.prompt_tokens == 4
            assert text == "".join(model.generate(ids[: n + 4], 20, cache=cache, **how))


def test_every_level_reads_what_another_wrote(tmp_path: Path, ids: list[int]) -> None:
    """Where the same packed file serves them: its layouts are those of one level."""
    by_identity: dict[bytes, list[bitgen.Model]] = {}
    for isa in library.host_isas():
        opened = bitgen.Model.load(isa=isa, threads=1)
        by_identity.setdefault(opened.identity, []).append(opened)
    for models in by_identity.values():
        path = tmp_path / f"{models[0].plan.isa}.kv"
        with models[0].session(context=64) as source:
            source.append(ids[:50])
            source.save(path)
        for opened in models[1:]:
            with opened.session(context=64) as session:
                session.restore(path)
                assert np.array_equal(session.forward(ids[50:51]), models[0].logits(ids[:51])[-1])


def test_an_empty_session(model: bitgen.Model, tmp_path: Path, ids: list[int]) -> None:
    with model.session(context=16) as session:
        session.save(tmp_path / "none.kv")
        session.append(ids[:3])
        assert session.restore(tmp_path / "none.kv") == session.position == 0 and session.tokens == []
        assert np.array_equal(session.forward(ids[:2]), model.logits(ids[:2])[-1])


def test_a_file_is_a_function_of_the_tokens(model: bitgen.Model, file: Path, ids: list[int], tmp_path: Path) -> None:
    """Not of what was forgotten, of the context's length or of the threads: nothing of a rewound text is in it."""
    with model.session(context=200, threads=1) as session:
        session.append(ids[:150])
        session.rewind(0)
        session.append(ids[:3])
        session.append([*ids[3:7], 9, 9])
        session.rewind(7)
        session.save(tmp_path / "again.kv")
    assert (tmp_path / "again.kv").read_bytes() == file.read_bytes()


def refused(session: bitgen.Session, path: Path, words: str, kind: type[BitgenError] = FormatError) -> None:
    """Refused in one sentence, and the session is as it was."""
    before = session.tokens
    with pytest.raises(kind, match=words) as caught:
        session.restore(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert session.tokens == before


def test_files_of_others(model: bitgen.Model, file: Path, ids: list[int], tmp_path: Path) -> None:
    with bitgen.Model.load(head="f16", threads=1).session(context=16) as session:
        session.append(ids[:2])
        refused(session, file, "is a prompt cache of another model, or of this one with other kernels or another head")
    with model.session(context=16, cache="int8") as session:
        refused(session, file, "has keys and values of another type")
    with model.session(context=6) as session:
        refused(session, file, "holds 7 tokens, this session's context 6", EngineError)
    with model.session(context=16) as session:
        session.append(ids[:2])
        refused(session, model.path, "is not a prompt cache")
        refused(session, tmp_path, "is not a regular file")
        refused(session, tmp_path / "nothing", "no such file")
        whole = file.read_bytes()
        for at, value in ((8, 2), (12, 2)):  # version, definition
            (other := tmp_path / "other.kv").write_bytes(whole[:at] + struct.pack("<I", value) + whole[at + 4 :])
            refused(session, other, "is a prompt cache of another version of bitgen; save it again")


def test_damage_at_every_place(model: bitgen.Model, file: Path, ids: list[int], tmp_path: Path) -> None:
    whole, damaged = file.read_bytes(), tmp_path / "damaged.kv"
    places = [*range(prompt_cache.HEAD.size + 28), *range(prompt_cache.HEAD.size + 28, len(whole), 997)]
    with model.session(context=16) as session:
        session.append(ids[:2])
        for at in (*places, len(whole) - 1):
            damaged.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
            refused(session, damaged, "damaged|prompt cache|type|holds 3 tokens", BitgenError)
        for size in (0, 7, prompt_cache.HEAD.size - 1, prompt_cache.HEAD.size, len(whole) - 1):
            damaged.write_bytes(whole[:size])
            refused(session, damaged, "not a prompt cache|damaged")
        damaged.write_bytes(whole + b"\0")
        refused(session, damaged, "damaged")
        tokens = struct.pack("<i", model.shape.vocab)
        at = prompt_cache.HEAD.size
        damaged.write_bytes(whole[:at] + tokens + whole[at + 4 :])
        refused(session, damaged, "is damaged: it has tokens that the model has not")


def test_a_file_that_changes_while_it_is_read(
    model: bitgen.Model, file: Path, ids: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path := tmp_path / "changing.kv").write_bytes(file.read_bytes())
    load = bitgen.Session._load

    def change(self: bitgen.Session, saved: prompt_cache.PromptCache) -> None:
        with path.open("r+b") as f:
            f.seek(-1, 2)
            f.write(b"\x55")
        load(self, saved)

    monkeypatch.setattr(bitgen.Session, "_load", change)
    with model.session(context=16) as session:
        session.append(ids[:2])
        with pytest.raises(FormatError, match="damaged"):
            session.restore(path)
        assert session.position == 0 and session.tokens == []
        assert np.array_equal(session.forward(ids[:2]), model.logits(ids[:2])[-1])


def test_any_bytes_are_refused_or_restored(model: bitgen.Model, file: Path, tmp_path: Path) -> None:
    whole, path = file.read_bytes(), tmp_path / "any.kv"
    with model.session(context=16) as session:

        def attempt(edits: list[fuzzing.Edit]) -> None:
            raw = bytearray(whole)
            for edit in edits:
                if raw:
                    edit(raw)
            path.write_bytes(raw)
            with fuzzing.limits(room=256 << 20, seconds=20):
                try:
                    assert session.restore(path) == 7 and bytes(raw) == whole
                except BitgenError as error:
                    assert "\n" not in str(error)
            assert session.position in (0, 7)

        fuzzing.fuzz(attempt, fuzzing.edits, 150, 0.5)
        fuzzing.fuzz(lambda raw: attempt([lambda a: a.__setitem__(slice(None), raw)]), st.binary(max_size=300), 50, 0.5)


def test_one_call_at_a_time(model: bitgen.Model, file: Path) -> None:
    with model.session(context=16) as session:
        calls: list[Callable[[], Any]] = [lambda: session.save(file), lambda: session.restore(file)]
        with session._turn.take():
            for call in calls:
                with pytest.raises(EngineError, match="is at work in another call"):
                    call()
    for call in calls:
        with pytest.raises(EngineError, match="this session is closed"):
            call()
    for wrong in (None, 5, b"a", ""):
        with model.session(context=16) as session:
            for method in (session.save, session.restore):
                with pytest.raises(ArgumentError, match=r"path is .*, must be a path"):
                    method(wrong)


def test_a_folder_that_is_not_there(model: bitgen.Model, tmp_path: Path) -> None:
    with model.session(context=16) as session, pytest.raises(BitgenError, match="cannot write"):
        session.save(tmp_path / "none" / "a.kv")
    assert threading.active_count() >= 1 and list(tmp_path.iterdir()) == []
