"""Tokenizers: ids equal those of the original, text streams back whole, broken vocabularies are errors."""

from __future__ import annotations

import gzip
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_files import SPECIALS, TEXTS, byte_level, piece_keys, repetitive, saved, trained_pieces
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from bitgen.checkpoints import synth
from bitgen.convert.hf_tokenizer import metadata_from_hf
from bitgen.errors import BitgenError, FormatError, UnsupportedError
from bitgen.text.tokenizer import CJK, GPT2, HUNYUAN, LLAMA3, QWEN2, QWEN35, WORDS, TextStream, Tokenizer

# ---- byte-level BPE ----


@pytest.fixture(scope="module")
def llama3(fixtures: Path) -> Tokenizer:
    """As a 2B4T file has it: no tokenizer.ggml.pre."""
    with gzip.open(fixtures / "llama3" / "vocab.json.gz") as f:
        stored = json.load(f)
    return Tokenizer.from_metadata(
        {
            "general.architecture": "bitnet-b1.58",
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.tokens": stored["tokens"],
            "tokenizer.ggml.merges": stored["merges"],
            "tokenizer.ggml.token_type": np.repeat(np.array([1, 3], np.int32), [128000, 256]),
            "tokenizer.ggml.bos_token_id": 128000,
            "tokenizer.ggml.eos_token_id": 128001,
        }
    )


def test_llama3_samples(llama3: Tokenizer, fixtures: Path) -> None:
    samples = json.loads((fixtures / "llama3" / "samples.json").read_text(encoding="utf-8"))
    assert len(samples) == 29
    for sample in samples:
        assert llama3.encode(sample["text"], add_bos=False) == sample["ids"]
        assert llama3.decode(sample["ids"]) == sample["text"].replace("<|eot_id|>", "")


def test_llama3_special_tokens(llama3: Tokenizer) -> None:
    assert llama3.kind == "byte-level BPE (llama-bpe)" and llama3.add_bos and len(llama3) == 128256
    assert {128001, 128009} <= llama3.stop_ids and 128000 not in llama3.stop_ids
    assert llama3.encode("a<|eot_id|>") == [128000, 64, 128009]
    assert 128009 not in llama3.encode("a<|eot_id|>", parse_special=False)
    assert llama3.encode("<|begin_of_text|>a") == [128000, 64]  # once


@pytest.mark.parametrize(
    ("pattern", "pre", "ignore_merges", "nfc"),
    [
        (LLAMA3, "llama-bpe", True, False),
        (QWEN2, "qwen2", False, True),
        (QWEN35, "qwen35", False, True),
        (GPT2, "gpt-2", False, False),
        (WORDS["hunyuan-dense"].patterns, "hunyuan-dense", False, False),
        # line ends may stand for themselves
        ((r"\p{N}{1,3}", CJK, HUNYUAN.replace(r"\r\n", "\r\n")), "hunyuan-dense", False, False),
    ],
)
def test_hugging_face_tokenizers_keep_their_ids(
    tmp_path: Path, pattern: str | tuple[str, ...], pre: str, ignore_merges: bool, nfc: bool
) -> None:
    original = byte_level(pattern, ignore_merges, nfc)
    keys = metadata_from_hf(saved(tmp_path, original))
    assert keys["tokenizer.ggml.pre"] == pre
    tokenizer = Tokenizer.from_metadata(keys)
    for text in TEXTS:
        ids = original.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text, add_bos=False) == ids
        if not nfc:
            assert tokenizer.decode(ids) == original.decode(ids)


def test_byte_level_with_its_own_regex_is_gpt_2(tmp_path: Path) -> None:
    original = byte_level(GPT2, ignore_merges=False)
    original.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert metadata_from_hf(saved(tmp_path, original))["tokenizer.ggml.pre"] == "gpt-2"


def test_merges_that_are_not_needed_may_be_ignored(tmp_path: Path) -> None:
    """Llama-3's pattern without ignore_merges fits where the merges reach every token anyway."""
    keys = metadata_from_hf(saved(tmp_path, byte_level(LLAMA3, ignore_merges=False)))
    assert keys["tokenizer.ggml.pre"] == "llama-bpe"
    stranger = json.loads((tmp_path / "tokenizer.json").read_text())
    stranger["model"]["vocab"]["xyzzy"] = 10_000
    (tmp_path / "tokenizer.json").write_text(json.dumps(stranger))
    with pytest.raises(UnsupportedError, match="ignore_merges=false"):
        metadata_from_hf(tmp_path)


def test_keys_from_the_other_files_of_a_directory(tmp_path: Path) -> None:
    original = byte_level()
    bos, eos, eot = (original.token_to_id(s) for s in SPECIALS)
    template = "{{ messages }}"
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 640, "bos_token_id": bos}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [eos, eot]}))
    keys = metadata_from_hf(saved(tmp_path, original, chat_template=template, bos_token=None))
    assert len(keys["tokenizer.ggml.tokens"]) == 640 and keys["tokenizer.ggml.tokens"][639] == "[PAD639]"
    assert keys["tokenizer.ggml.token_type"].tolist() == [1] * 600 + [3] * 3 + [5] * 37
    ids = [keys[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "eot")]
    assert ids == [bos, eos, eot]
    assert keys["tokenizer.chat_template"] == template
    tokenizer = Tokenizer.from_metadata(keys)
    assert tokenizer.stop_ids == {eos, eot} and tokenizer.bos == bos


def test_begin_of_text_is_added_where_the_original_adds_it(tmp_path: Path) -> None:
    original = byte_level()
    for key in (True, False):  # transformers 5 does not read it beside a tokenizer.json
        assert not metadata_from_hf(saved(tmp_path, original, add_bos_token=key))["tokenizer.ggml.add_bos_token"]
    bos = original.token_to_id(SPECIALS[0])
    original.post_processor = processors.TemplateProcessing(
        single=f"{SPECIALS[0]} $A", special_tokens=[(SPECIALS[0], bos)]
    )
    assert metadata_from_hf(saved(tmp_path, original))["tokenizer.ggml.add_bos_token"]


def vocabulary(words: dict[str, int], **keys: Any) -> Tokenizer:
    """A byte-level tokenizer of these words, by their types, behind one normal token."""
    return Tokenizer.from_metadata(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": ["a", *words],
            "tokenizer.ggml.token_type": np.array([1, *words.values()], np.int32),
            **{f"tokenizer.ggml.{key}": value for key, value in keys.items()},
        }
    )


TURN_ENDS = (
    "<end_of_turn>", "<|im_end|>", "<|eot_id|>", "<eos>", "</s>", "<turn|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
    "<|end|>", "<|return|>", "<|call|>", "<|calls|>", "<|flush|>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>",
    "<end_of_utterance>", "<|tool_response>", "<｜end▁of▁sentence｜>",
)  # fmt: skip


@pytest.mark.parametrize("type", [3, 4])
def test_words_that_end_a_turn(type: int) -> None:
    """Whatever the file says, and whether the words are control tokens or user-defined."""
    for word in TURN_ENDS:
        assert vocabulary({word: type, "<other>": type}).stop_ids == {1}
    assert vocabulary({"</s>": 1}).stop_ids == set()  # an ordinary token


def test_words_that_end_only_a_part_of_a_turn() -> None:
    """As in llama.cpp: <|end|> ends a message beside <|return|> and <|call|>, </s> none beside <|tool_response>."""
    assert vocabulary({"<|end|>": 3, "<|return|>": 3, "<|call|>": 3}).stop_ids == {2, 3}
    assert vocabulary({"<|end|>": 3, "<|flush|>": 3, "<|calls|>": 3}).stop_ids == {2, 3}
    assert vocabulary({"<|end|>": 3, "<|return|>": 3}).stop_ids == {1, 2}
    assert vocabulary({"</s>": 3, "<|tool_response>": 3}).stop_ids == {2}
    assert vocabulary({"<|end|>": 3, "<|return|>": 3, "<|call|>": 3}, eos_token_id=1).stop_ids == {1, 2, 3}


def test_end_tokens_that_the_file_lists() -> None:
    words = {f"<{n}>": 3 for n in range(6)}
    listed = np.array([4, 5, 6], np.int32)
    tokenizer = vocabulary(words, eos_token_id=1, eot_token_id=2, eom_token_id=3, eos_token_ids=listed)
    assert tokenizer.stop_ids == {1, 2, 3, 4, 5, 6}
    for wrong in (7, [7], [-1], ["1"], np.array([0.5])):
        with pytest.raises(FormatError, match="eos_token_ids"):
            vocabulary(words, eos_token_ids=wrong)


def change_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda j: j["model"].update(type="WordLevel", unk_token="!"), "WordLevel|cannot be read"),
        (lambda j: j["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=r"\w+"), "no GGUF name"),
        (lambda j: j["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed"), "no GGUF name"),
        (lambda j: j["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True), "no GGUF name"),
        (lambda j: j.update(normalizer={"type": "Lowercase"}), "normalizer Lowercase"),
        (lambda j: j["model"].pop("vocab"), "cannot be read"),
        (lambda j: j["model"]["vocab"].update(extra=3), "share the id 3"),
        (lambda j: j["model"]["merges"].append(["q", "zz"]), "cannot be read"),
        (lambda j: j["added_tokens"][0].update(lstrip=True), "'<|begin|>' is an added token with lstrip"),
        (lambda j: j["added_tokens"][1].update(rstrip=True), "with rstrip"),
        (lambda j: j["added_tokens"][2].update(single_word=True), "with single_word"),
    ],
)
def test_tokenizers_that_gguf_cannot_hold(tmp_path: Path, change: Callable, reason: str) -> None:
    saved(tmp_path, byte_level())
    change_json(tmp_path / "tokenizer.json", change)
    with pytest.raises(BitgenError, match=reason) as caught:
        metadata_from_hf(tmp_path)
    assert "tokenizer.json" in str(caught.value)


def test_broken_directories(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"tokenizer\.json is missing"):
        metadata_from_hf(tmp_path)
    for text in ("", "[]", "{}", '{"model": 3}'):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(FormatError, match=r"tokenizer\.json"):
            metadata_from_hf(tmp_path)
    saved(tmp_path, byte_level())
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(FormatError, match=r"tokenizer_config\.json"):
        metadata_from_hf(tmp_path)


# ---- SentencePiece ----


@pytest.fixture(scope="module")
def piece_model(tmp_path_factory: pytest.TempPathFactory) -> sentencepiece.SentencePieceProcessor:
    return trained_pieces(tmp_path_factory.mktemp("spm"))


def test_sentencepiece_ids_and_text(piece_model: sentencepiece.SentencePieceProcessor) -> None:
    tokenizer, rng = Tokenizer.from_metadata(piece_keys(piece_model)), random.Random(2)
    assert tokenizer.kind == "SentencePiece BPE" and tokenizer.add_bos
    texts = TEXTS + [repetitive(rng, rng.randrange(1, 20)) for _ in range(1500)]
    texts += ["".join(rng.choice("loab ha\U0001f642é<s>") for _ in range(rng.randrange(24))) for _ in range(1500)]
    for text in texts:
        ids = piece_model.encode(text)
        assert tokenizer.encode(text, add_bos=False, parse_special=False) == ids
        assert tokenizer.decode(ids) == piece_model.decode(ids)
    assert tokenizer.encode("a")[0] == piece_model.bos_id()


def test_sentencepiece_without_byte_fallback(piece_model: sentencepiece.SentencePieceProcessor) -> None:
    keys = piece_keys(piece_model)
    keys["tokenizer.ggml.token_type"] = np.where(
        keys["tokenizer.ggml.token_type"] == 6, 5, keys["tokenizer.ggml.token_type"]
    )
    tokenizer = Tokenizer.from_metadata(keys)
    ids = tokenizer.encode("a\U0001f642\U0001f680", add_bos=False)
    assert ids[-1] == piece_model.unk_id() and ids.count(piece_model.unk_id()) == 1
    assert tokenizer.decode(ids).endswith(" \u2047 ")


def test_sentencepiece_space_before_the_text(piece_model: sentencepiece.SentencePieceProcessor) -> None:
    """The encoder's space is dropped at a text's start, and kept in a continuation."""
    keys = piece_keys(piece_model)
    tokenizer = Tokenizer.from_metadata(keys)
    ids = tokenizer.encode("hello", add_bos=False)
    assert tokenizer.decode(ids) == "hello" and tokenizer.decode([1, *ids]) == "hello"
    stream = TextStream(tokenizer)
    assert "".join(map(stream.push, ids)) + stream.flush() == " hello"
    bare = Tokenizer.from_metadata(keys | {"tokenizer.ggml.add_space_prefix": False})
    ids = bare.encode(" hello", add_bos=False)
    assert ids == tokenizer.encode("hello", add_bos=False) and bare.decode(ids) == " hello"


@pytest.mark.parametrize("style", ["legacy", "metaspace"])
def test_sentencepiece_through_tokenizer_json(
    piece_model: sentencepiece.SentencePieceProcessor, tmp_path: Path, style: str
) -> None:
    """Scores are lost in tokenizer.json, merges are not."""
    keys = piece_keys(piece_model)
    tokens, scores = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.scores"]
    vocab = {token: id for id, token in enumerate(tokens)}
    plain = {t for t, kind in zip(tokens, keys["tokenizer.ggml.token_type"], strict=True) if kind == 1}
    ranked = sorted(plain, key=lambda t: -scores[vocab[t]])
    merges = [(t[:i], t[i:]) for t in ranked for i in range(len(t) - 1, 0, -1) if {t[:i], t[i:]} <= plain]
    original = Backend(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if style == "legacy":
        original.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        original.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    original.add_special_tokens([AddedToken(s, normalized=False) for s in ("<unk>", "<s>", "</s>")])
    original.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    original.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    tokenizer = Tokenizer.from_metadata(metadata_from_hf(tmp_path))
    assert tokenizer.stop_ids == {2} and tokenizer.add_bos
    for text in TEXTS:
        if "<" not in text and "▁" not in text:
            assert tokenizer.encode(text, add_bos=False) == piece_model.encode(text)
        if style == "legacy" or not text.startswith((" ", "▁", "<s>")):  # Metaspace adds no second space
            assert tokenizer.encode(text, add_bos=False) == original.encode(text, add_special_tokens=False).ids


# ---- text from ids ----

BYTES = Tokenizer.from_metadata(synth.vocabulary(300))


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    ids = BYTES.encode(text, add_bos=False)
    assert BYTES.decode(ids) == text
    stream = TextStream(BYTES)
    assert "".join([stream.push(id) for id in ids]) + stream.flush() == text


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-5, 400), max_size=40))
def test_any_ids_stream_to_the_text_they_decode_to(ids: list[int]) -> None:
    stream = TextStream(BYTES, start=True)
    assert "".join([stream.push(id) for id in ids]) + stream.flush() == BYTES.decode(ids)


def test_characters_come_whole() -> None:
    ids = BYTES.encode("a😀é", add_bos=False)
    stream = TextStream(BYTES)
    assert [stream.push(id) for id in ids] == ["a", "", "", "", "😀", "", "é"]
    assert stream.flush() == ""
    stream = TextStream(BYTES)
    assert [stream.push(id) for id in ids[:3]] == ["a", "", ""] and stream.flush() == "\ufffd"


def test_control_tokens_have_no_text() -> None:
    assert BYTES.decode([298, *BYTES.encode("hi", add_bos=False), 299]) == "hi"
    assert BYTES.decode([300]) == BYTES.decode([-1]) == "\ufffd"


def test_lone_surrogates_are_an_error() -> None:
    with pytest.raises(BitgenError, match="surrogates"):
        BYTES.encode("\ud800")


def test_user_defined_tokens_are_always_found() -> None:
    keys = synth.vocabulary(300)
    keys["tokenizer.ggml.token_type"][280] = 4
    keys["tokenizer.ggml.tokens"][280] = "<|x y|>"
    tokenizer = Tokenizer.from_metadata(keys)
    for parse_special in (True, False):
        ids = tokenizer.encode("a<|x y|>b", add_bos=False, parse_special=parse_special)
        assert len(ids) == 3 and ids[1] == 280 and tokenizer.decode(ids) == "a<|x y|>b"


# ---- which pre-tokenizer, which begin token ----


@pytest.mark.parametrize(
    ("architecture", "size", "pre", "kind"),
    [
        ("bitnet-b1.58", 128256, None, "llama-bpe"),
        ("bitnet-25", 128256, None, "llama-bpe"),
        ("bitnet-b1.58", 128256, "qwen2", "qwen2"),
        ("bitnet-b1.58", 4096, None, "default"),
        ("llama", 128256, None, "default"),
        ("llama", 300, "falcon3", "falcon3"),
    ],
)
def test_pre_tokenizer_rule(architecture: str, size: int, pre: str | None, kind: str) -> None:
    keys = synth.vocabulary(size) | {"general.architecture": architecture, "tokenizer.ggml.pre": pre}
    if pre is None:
        del keys["tokenizer.ggml.pre"]
    assert Tokenizer.from_metadata(keys).kind == f"byte-level BPE ({kind})"


@pytest.mark.parametrize(("pre", "added"), [("llama-bpe", True), ("qwen2", False), ("gpt-2", False)])
def test_begin_token_where_the_file_is_silent(pre: str, added: bool) -> None:
    keys = synth.vocabulary(300) | {"tokenizer.ggml.pre": pre}
    del keys["tokenizer.ggml.add_bos_token"]
    tokenizer = Tokenizer.from_metadata(keys)
    assert (tokenizer.encode("a")[0] == 298) == added
    assert tokenizer.encode("a", add_bos=True)[0] == 298
    assert tokenizer.encode("a", add_bos=False)[0] != 298


# ---- broken vocabularies ----


@pytest.mark.parametrize(
    ("key", "value", "error", "reason"),
    [
        ("model", None, UnsupportedError, "model is ''"),
        ("model", "t5", UnsupportedError, "model is 't5'"),
        ("model", 3, FormatError, "model is of type int"),
        ("tokens", None, FormatError, "tokens is not a list"),
        ("tokens", [], FormatError, "tokens is not a list"),
        ("tokens", np.zeros(300), FormatError, "tokens is of type ndarray"),
        ("tokens", ["a"] * 300, FormatError, "'a' is both token 0 and token 1"),
        ("token_type", [1, 2], FormatError, "token_type is not a list of 300 numbers"),
        ("token_type", ["1"] * 300, FormatError, "token_type is not a list of 300 numbers"),
        ("token_type", [[1], 2], FormatError, "token_type is not a list of 300 numbers"),
        ("merges", ["a"], FormatError, "merges holds 'a'"),
        ("merges", ["a "], FormatError, "merges holds 'a '"),
        ("merges", ["a zz"], FormatError, "merges holds 'a zz'; the two or what they make"),
        ("merges", "a b", FormatError, "merges is of type str"),
        ("pre", "tekken", UnsupportedError, "pre is 'tekken'; known: llama-bpe"),
        ("bos_token_id", 300, FormatError, "bos_token_id is 300, beyond the 300 tokens"),
        ("bos_token_id", -1, FormatError, "bos_token_id is -1"),
        ("bos_token_id", "1", FormatError, "bos_token_id is of type str"),
        ("eos_token_id", True, FormatError, "eos_token_id is of type bool"),
        ("add_bos_token", 1, FormatError, "add_bos_token is of type int"),
    ],
)
def test_broken_byte_level_keys(key: str, value: Any, error: type, reason: str) -> None:
    keys = synth.vocabulary(300) | {f"tokenizer.ggml.{key}": value}
    if value is None:
        del keys[f"tokenizer.ggml.{key}"]
    with pytest.raises(error, match=reason):
        Tokenizer.from_metadata(keys)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda k: k.pop("tokenizer.ggml.scores"), "scores is missing"),
        (lambda k: k["tokenizer.ggml.scores"].__setitem__(7, math.nan), "scores is not a list"),
        (lambda k: k.update({"tokenizer.ggml.scores": k["tokenizer.ggml.scores"][1:]}), "scores is not a list"),
        (lambda k: k["tokenizer.ggml.tokens"].__setitem__(5, "<0xZZ>"), "byte token '<0xZZ>'"),
    ],
)
def test_broken_sentencepiece_keys(
    piece_model: sentencepiece.SentencePieceProcessor, change: Callable, reason: str
) -> None:
    keys = piece_keys(piece_model)
    change(keys)
    with pytest.raises(FormatError, match=reason):
        Tokenizer.from_metadata(keys)


values = st.one_of(st.none(), st.booleans(), st.integers(-3, 400), st.text(max_size=5), st.just(math.nan),
                   st.lists(st.one_of(st.integers(-2, 7), st.text(max_size=4)), max_size=5))  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["gpt2", "llama"]), st.dictionaries(st.sampled_from(
    ["tokens", "merges", "scores", "token_type", "pre", "bos_token_id", "eos_token_id", "eot_token_id",
     "add_bos_token", "add_space_prefix"]), values))  # fmt: skip
def test_arbitrary_keys_give_a_tokenizer_or_a_clear_error(model: str, changes: dict[str, Any]) -> None:
    keys = synth.vocabulary(300) | {"tokenizer.ggml.model": model, "tokenizer.ggml.scores": np.zeros(300)}
    keys |= {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    try:
        tokenizer = Tokenizer.from_metadata(keys)
        tokenizer.decode(tokenizer.encode("Once upon"))
    except BitgenError as error:
        assert "tokenizer.ggml" in str(error) or "vocabulary" in str(error)
