"""Vectors of texts: how they are computed, and that texts of one pass do not change each other's."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

import bitgen
from bitgen.checkpoints import reference
from bitgen.cli import main
from bitgen.engine import embed as embedding
from bitgen.engine.session import states_batch
from bitgen.errors import BitgenError, EngineError, UnsupportedError
from bitgen.gguf.reader import read_gguf

TEXTS = ["The dog ran to the park.", "A", "Once upon a time, there was a cat. " * 9, "The dog went to the park.", "x y"]


@pytest.fixture(scope="module")
def model() -> bitgen.Model:
    return bitgen.Model.load(threads=2)


def states(model: bitgen.Model, text: str) -> np.ndarray:
    with model.session() as session:
        return states_batch([session], [model.tokenizer.encode(text)], every=True)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x.astype(np.float64))


def test_states_are_what_the_output_matrix_multiplies(model: bitgen.Model) -> None:
    tokens = model.tokenizer.encode(TEXTS[0])
    got = states(model, TEXTS[0])
    want = reference.states(read_gguf(model.path), tokens, np.float16)
    assert got.shape == want.shape == (len(tokens), model.shape.hidden)
    assert np.median(np.abs(got - want).max(axis=1)) < 0.05 * want.std()
    head = read_gguf(model.path).dense("token_embd.weight").astype(np.float32)
    assert np.allclose(got @ head.T, model.logits(tokens), atol=1e-4)


@pytest.mark.parametrize("pooling", embedding.POOLINGS)
def test_pooling(model: bitgen.Model, pooling: str) -> None:
    vectors = model.embed(TEXTS, pooling=pooling)
    assert vectors.shape == (5, model.shape.hidden) and vectors.dtype == np.float32
    for text, vector in zip(TEXTS, vectors, strict=True):
        rows = states(model, text)
        want = {"last": rows[-1], "cls": rows[0], "mean": rows.mean(0, np.float64)}[pooling]
        assert np.allclose(vector, unit(want), atol=1e-6)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_a_vector_does_not_depend_on_the_texts_beside_it(model: bitgen.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    many = [text[: 7 * i + 1] for i, text in enumerate(TEXTS * 8)]
    want = np.concatenate([model.embed([text]) for text in many])
    assert np.array_equal(model.embed(many), want)
    assert np.array_equal(bitgen.Model.load(threads=1).embed(many[::-1])[::-1], want)
    monkeypatch.setattr(embedding, "MOST_SESSIONS", 3)
    assert np.array_equal(model.embed(many), want)


def test_like_texts_are_near(model: bitgen.Model) -> None:
    vectors = model.embed(TEXTS, pooling="mean")
    alike = vectors @ vectors[0]
    assert alike[3] > max(alike[1], alike[2], alike[4])
    assert model.pooling == "last" and np.array_equal(model.embed(TEXTS), model.embed(TEXTS, pooling="last"))


def test_the_end_token_follows_where_the_model_wants_it(model: bitgen.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    before = model.embed(["A cat"])
    monkeypatch.setattr(model.tokenizer, "add_eos", True)
    with model.session() as session:
        want = states_batch([session], [[*model.tokenizer.encode("A cat"), model.tokenizer.eos]])
    assert np.allclose(model.embed(["A cat"])[0], unit(want[0]), atol=1e-6) and not np.allclose(before, want)


def test_what_cannot_be_embedded(model: bitgen.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model.embed([]).shape == (0, model.shape.hidden)
    with pytest.raises(BitgenError, match=r"text 2 has \d+ tokens, the model's context holds 512"):
        model.embed(["A", "long " * 600])
    with monkeypatch.context() as other, pytest.raises(UnsupportedError, match="pooling 'type 4' is not supported"):
        asked = embedding.pooling_of({"general.architecture": "x", "x.pooling_type": 4})
        other.setattr(model, "pooling", asked)
        model.embed(["A"])
    monkeypatch.setattr(model.tokenizer, "add_bos", False)
    with pytest.raises(BitgenError, match="text 1 is empty"):
        model.embed([""])
    with model.session() as session, pytest.raises(EngineError, match="tokens must be"):
        states_batch([session], [[10**6]])


def test_command(tmp_path, model: bitgen.Model) -> None:  # type: ignore[no-untyped-def]
    want = model.embed(["A cat", "dogs"])
    run = CliRunner()
    lines = run.invoke(main, ["embed", "A cat", "dogs"]).stdout.splitlines()
    assert np.array_equal(np.array([json.loads(line) for line in lines], np.float32), want)
    found = json.loads(run.invoke(main, ["embed", "--json"], input="A cat\ndogs\n").stdout)
    assert [pair["text"] for pair in found["embeddings"]] == ["A cat", "dogs"]
    assert (found["model"], found["pooling"]) == ("stories", "last")
    (tmp_path / "texts").write_text("A cat\r\ndogs")
    args = ["embed", "-f", str(tmp_path / "texts"), "--npy", str(tmp_path / "v.npy"), "--pooling", "mean"]
    assert run.invoke(main, args).exit_code == 0
    assert np.array_equal(np.load(tmp_path / "v.npy"), model.embed(["A cat", "dogs"], pooling="mean"))
    missing = run.invoke(main, ["embed", "A", "--npy", str(tmp_path / "no" / "v.npy")])
    assert missing.exit_code == 1 and "cannot write" in missing.stderr
    assert run.invoke(main, ["embed", "A", "-f", str(tmp_path / "texts")]).exit_code == 2
