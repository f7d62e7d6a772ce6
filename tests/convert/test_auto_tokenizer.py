"""Tokenizers whose tokens, names and flags stand in several files: the ids and end tokens are those of transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizer_files import SPECIALS, byte_level
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from bitgen.convert.auto_tokenizer import AutoTokenizer
from bitgen.convert.hf_tokenizer import Vocabulary, metadata_from_hf
from bitgen.errors import BitgenError, FormatError, UnsupportedError
from bitgen.text.tokenizer import Tokenizer

BOS, EOS, EOT = SPECIALS
FIRST = 603  # the first id that byte_level() has no token for
START = {"content": "<|im_start|>", "lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
IMAGE = START | {"content": "<img>", "normalized": True}
TEXTS = [
    "hello <|im_start|>user <|end_of_text|>a <new>b</new> <img>c",
    "<tool> it<tool>x [PAD] <|endoftext|>",
    " two  spaces before",
    "<|eot_id|>\n",
]
Files = dict[str, Any]


def template(before: str = "", after: str = "") -> Callable[[Backend], None]:
    """A post-processor that puts special tokens before and after a text."""

    def change(tokenizer: Backend) -> None:
        tokens = [(token, tokenizer.token_to_id(token)) for token in (before + after).replace("><", "> <").split()]
        single = f"{before} $A {after}".replace("><", "> <").strip()
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=tokens)

    return change


def limits(tokenizer: Backend) -> None:
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=30)


def folder(path: Path, files: Files, change: Callable[[Backend], None] | None = None) -> Path:
    """A directory with a byte-level tokenizer and these JSON files."""
    tokenizer = byte_level()
    if change:
        change(tokenizer)
    tokenizer.save(str(path / "tokenizer.json"))
    for name, values in ({"config.json": {"model_type": "llama"}} | files).items():
        (path / name).write_text(json.dumps(values))
    return path


def settings(**values: Any) -> Files:
    return {"tokenizer_config.json": values}


QWEN3: Files = {"config.json": {"model_type": "qwen3"}}
CASES: dict[str, tuple[Files, Callable[[Backend], None] | None]] = {
    "the post-processor is the only one to know bos": ({}, template(BOS)),
    "bos in special_tokens_map": ({"special_tokens_map.json": {"bos_token": BOS}}, template(BOS)),
    "eos after a text": (settings(eos_token=EOS), template(BOS, EOS)),
    "add_bos_token does not count": (settings(bos_token=BOS, add_bos_token=True), None),
    "nor does its denial": (settings(bos_token=BOS, add_bos_token=False), template(BOS)),
    "added_tokens_decoder": (
        settings(added_tokens_decoder={"603": START | {"special": True}, "604": IMAGE | {"special": False}}),
        None,
    ),
    "ids that it cannot have": (settings(added_tokens_decoder={"700": START, "650": IMAGE}), None),
    "other flags": (settings(added_tokens_decoder={"602": START | {"content": EOT}}), None),
    "it stands alone": (
        settings(added_tokens_decoder={"603": START})
        | {"special_tokens_map.json": {"bos_token": "<new>"}, "added_tokens.json": {"<img>": 605}},
        None,
    ),
    "added_tokens.json": (
        {"added_tokens.json": {"<img>": 604, "<new>": 603}, "special_tokens_map.json": {"bos_token": "<new>"}},
        None,
    ),
    "special_tokens_map comes first": (
        settings(eos_token=EOS)
        | {"special_tokens_map.json": {"eos_token": {"content": EOT}, "additional_special_tokens": ["<new>"]}},
        template(BOS),
    ),
    "a list of others": (settings(additional_special_tokens=["<new>", "</new>"]), None),
    "others by name": (settings(extra_special_tokens={"image_token": "<img>"}), None),
    "a name of the model's own": (settings(image_token="<img>", eos_token="<new>"), None),
    "named but nowhere": (settings(pad_token="<tool>", eos_token="<new>", bos_token="<img>"), None),
    "truncation and padding": ({}, limits),
    "Qwen2Tokenizer": (QWEN3 | settings(tokenizer_class="Qwen2Tokenizer", eos_token=EOT), None),
    "the class of the model": (QWEN3, None),
    "no class of the model": (QWEN3 | settings(tokenizer_class="PreTrainedTokenizerFast"), None),
    "LlamaTokenizer, byte-level": (settings(tokenizer_class="LlamaTokenizerFast"), template(BOS)),
    "GPT2Tokenizer": (settings(tokenizer_class="GPT2Tokenizer"), None),
    "a class that nobody knows": (settings(tokenizer_class="FooTokenizer"), template(BOS)),
}


@pytest.mark.transformers
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_ids_are_those_of_transformers(case: tuple[Files, Any], tmp_path: Path) -> None:
    """With the tokens around a text, and the same tokens named."""
    transformers = pytest.importorskip("transformers")
    want = transformers.AutoTokenizer.from_pretrained(folder(tmp_path, *case))
    keys = metadata_from_hf(tmp_path)
    given = Tokenizer.from_metadata(keys)
    end = [given.eos] if given.add_eos else []
    for text in TEXTS:
        assert [*given.encode(text), *end] == want(text).input_ids
    for name in ("bos", "eos", "pad", "unk"):
        id = getattr(want, f"{name}_token_id")
        key = {"pad": "padding", "unk": "unknown"}.get(name, name)
        assert id is None or end or keys[f"tokenizer.ggml.{key}_token_id"] == id


PIECES = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3, "a": 4, "b": 5, "▁a": 6, "ab": 7}
MERGES = [("▁", "a"), ("a", "b")]


@pytest.mark.transformers
@pytest.mark.parametrize("options", [{}, {"add_prefix_space": False}, {"legacy": True}], ids=["", "unspaced", "legacy"])
@pytest.mark.parametrize("name", [None, "LlamaTokenizer", "GemmaTokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_classes_that_build_sentencepiece_anew(
    model_type: str, name: str | None, options: dict[str, Any], tmp_path: Path
) -> None:
    """tokenizer.json has one way to treat spaces, and the class may have another."""
    transformers = pytest.importorskip("transformers")
    source = Backend(models.BPE(PIECES, MERGES, unk_token="<unk>", fuse_unk=True))
    source.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    source.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    template("<s>")(source)
    source.save(str(tmp_path / "tokenizer.json"))
    values = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": name, **options}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    want = transformers.AutoTokenizer.from_pretrained(tmp_path)
    given = AutoTokenizer.read(tmp_path, {"model_type": model_type})
    for text in ("ab a", " ab", "a</s>ab</s> b", "x"):
        assert given.backend.encode(text).ids == want(text).input_ids


# ---- end tokens ----

STOPS: dict[str, tuple[Files, set[int]]] = {
    "a number": ({"generation_config.json": {"eos_token_id": 7}}, {7}),
    "three": ({"generation_config.json": {"eos_token_id": [601, 7, 9]}}, {601, 7, 9}),
    "five": ({"generation_config.json": {"eos_token_id": [601, 7, 9, 11, 13]}}, {601, 7, 9, 11, 13}),
    "twice": ({"generation_config.json": {"eos_token_id": [7, 7, 601]}}, {601, 7}),
    "config.json's": ({"config.json": {"model_type": "llama", "eos_token_id": [601, 7]}}, {601, 7}),
    "generation_config comes first": (
        {"config.json": {"model_type": "llama", "eos_token_id": 8}, "generation_config.json": {"eos_token_id": [7]}},
        {7},
    ),
}


@pytest.mark.parametrize("case", STOPS.values(), ids=STOPS)
def test_all_end_tokens_are_kept(case: tuple[Files, set[int]], tmp_path: Path) -> None:
    """Beside the tokenizer's own, 601."""
    directory = folder(tmp_path, case[0] | settings(eos_token=EOS))
    tokenizer = Tokenizer.from_metadata(metadata_from_hf(directory))
    assert tokenizer.eos == 601 and tokenizer.stop_ids == case[1] | {601, 602}  # 602: <|eot_id|>, by its name


@pytest.mark.transformers
@pytest.mark.parametrize("case", STOPS.values(), ids=STOPS)
def test_end_tokens_are_those_of_transformers(case: tuple[Files, set[int]], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    directory = folder(tmp_path, case[0])
    try:
        generation = transformers.GenerationConfig.from_pretrained(directory)
    except OSError:  # there is no file: as a model does it
        generation = transformers.GenerationConfig.from_model_config(transformers.AutoConfig.from_pretrained(directory))
    ids = generation.eos_token_id
    assert set(ids if isinstance(ids, list) else [ids]) == case[1]


def test_an_id_that_cannot_come_ends_nothing(tmp_path: Path) -> None:
    files = {"generation_config.json": {"eos_token_id": [-1, 5000, 601]}, "config.json": {"vocab_size": 603}}
    assert Tokenizer.from_metadata(metadata_from_hf(folder(tmp_path, files))).stop_ids == {601, 602}


@pytest.mark.parametrize("value", ["7", 7.0, True, [7, "9"], {"a": 1}])
def test_end_tokens_that_are_no_ids(value: Any, tmp_path: Path) -> None:
    files = {"generation_config.json": {"eos_token_id": value}}
    with pytest.raises(FormatError, match=r"generation_config\.json: eos_token_id is"):
        metadata_from_hf(folder(tmp_path, files))


# ---- tokens beyond the embedding ----


def test_an_added_token_beyond_the_embedding_is_left_out(tmp_path: Path) -> None:
    directory = folder(tmp_path, settings(extra_special_tokens=["<img>"]) | {"config.json": {"vocab_size": FIRST}})
    vocabulary = Vocabulary.read(directory, FIRST)
    assert len(vocabulary.keys["tokenizer.ggml.tokens"]) == FIRST
    assert vocabulary.warning == f"{tmp_path / 'tokenizer.json'}: left out '<img>': the embedding has only 603 rows"
    assert Vocabulary.read(directory, FIRST + 1).warning is None


USED: dict[str, tuple[Files, Callable[[Backend], None] | None, str]] = {
    "in the template": (settings(pad_token="<img>", chat_template="{{ '<img>' }}"), None, "'<img>' is used"),
    "by its name in the template": (settings(eos_token="<img>", chat_template="{{ eos_token }}"), None, "'<img>' is"),
    "after a text": (
        {},
        lambda t: (t.add_special_tokens(["<img>"]), template("", "<img>")(t)),
        "'<img>' is used and has the id 603",
    ),
    "a word of the vocabulary": (settings(pad_token="<img>"), None, "but the embedding has only 600 rows"),
}


@pytest.mark.parametrize("case", USED.items(), ids=USED)
def test_a_token_beyond_the_embedding_that_is_used_is_refused(case: tuple[str, Any], tmp_path: Path) -> None:
    name, (files, change, reason) = case
    directory = folder(tmp_path, files, change)
    rows = FIRST
    if name == "a word of the vocabulary":
        source = json.loads((tmp_path / "tokenizer.json").read_text())
        source["model"]["vocab"]["word"], rows = 603, 600
        (tmp_path / "tokenizer.json").write_text(json.dumps(source))
    with pytest.raises(BitgenError, match=reason):
        Vocabulary.read(directory, rows)


# ---- chat templates ----

TEMPLATES: dict[str, tuple[Files, dict[str, str]]] = {
    "a text": (settings(chat_template="one"), {}),
    "a list": (settings(chat_template=[{"name": n, "template": n} for n in ("tool_use", "default")]), {}),
    "a list without a default": (settings(chat_template=[{"name": "tool_use", "template": "x"}]), {}),
    "a file comes first": (settings(chat_template="one"), {"chat_template.jinja": "two"}),
    "an empty file too": (settings(chat_template="one"), {"chat_template.jinja": ""}),
    "others beside": (
        settings(chat_template="one"),
        {"chat_template.jinja": "two", "additional_chat_templates/rag.jinja": "x"},
    ),
    "others alone": (settings(chat_template="one"), {"additional_chat_templates/rag.jinja": "x"}),
}


@pytest.mark.transformers
@pytest.mark.parametrize("case", TEMPLATES.values(), ids=TEMPLATES)
def test_the_chat_template_is_that_of_transformers(case: tuple[Files, dict[str, str]], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    files, texts = case
    directory = folder(tmp_path, files)
    for name, text in texts.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text)
    want = transformers.AutoTokenizer.from_pretrained(directory).chat_template
    want = want.get("default") if isinstance(want, dict) else want
    assert metadata_from_hf(directory).get("tokenizer.chat_template") == (want or None)


# ---- what is refused ----

REFUSED: dict[str, tuple[Files, Callable[[Backend], None] | None, str]] = {
    "two tokens before": ({}, template(BOS + EOS), "puts 2 tokens before a text"),
    "another bos": (settings(bos_token=EOS), template(BOS), "puts token 600 before a text; bos_token is"),
    "specials are spelt out": (settings(split_special_tokens=True), None, "split_special_tokens"),
    "another file": (settings(fast_tokenizer_files=["tokenizer.4.json"]), None, "fast_tokenizer_files"),
    "a class of other models": (settings(tokenizer_class="RobertaTokenizer"), None, "'RobertaTokenizer'"),
    "a class whose unknown token is not there": (
        settings(tokenizer_class="GemmaTokenizerFast"),
        None,
        "tokenizer.json: cannot be read as a tokenizer: .*<unk>",
    ),
    "tokens are a list": (settings(added_tokens_decoder=[1]), None, "tokenizer_config.json: the added tokens"),
    "a token is a number": (settings(added_tokens_decoder={"603": 1}), None, "tokenizer_config.json: the added tokens"),
    "a flag is a text": (settings(added_tokens_decoder={"603": START | {"special": "no"}}), None, "not understood"),
    "an id is a text": ({"added_tokens.json": {"<img>": "603"}}, None, "added_tokens.json: the added tokens"),
    "an id is below 0": ({"added_tokens.json": {"<img>": -1}}, None, "added_tokens.json: the added tokens"),
    "a template is a number": (settings(chat_template=3), None, "tokenizer_config.json: chat_template is 3, no text"),
    "a template in a list": (settings(chat_template=[["x"]]), None, "not as expected"),
    "a name is a number": (settings(eos_token=3), None, "the special tokens are not understood"),
    "spaces go": (settings(added_tokens_decoder={"603": START | {"rstrip": True}}), None, "with rstrip"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_is_not_understood_is_refused(case: tuple[Files, Any, str], tmp_path: Path) -> None:
    files, change, reason = case
    with pytest.raises(BitgenError, match=reason):
        metadata_from_hf(folder(tmp_path, files, change))


def test_a_token_found_only_in_normalized_text_is_refused(tmp_path: Path) -> None:
    """NFC makes one letter of two; a token that is one letter is then found, and GGUF's, which is sought first, not."""
    tokenizer = byte_level(nfc=True)
    tokenizer.add_tokens([AddedToken("<e\u0301>", normalized=True)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UnsupportedError):
        metadata_from_hf(tmp_path)


def test_a_pre_tokenizer_of_sentencepiece_without_spaces(tmp_path: Path) -> None:
    source = Backend(models.BPE(PIECES, MERGES, unk_token="<unk>", fuse_unk=True))
    source.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    source.save(str(tmp_path / "tokenizer.json"))
    assert metadata_from_hf(tmp_path)["tokenizer.ggml.add_space_prefix"] is False
