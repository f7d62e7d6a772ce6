"""The tokenizer of a Hugging Face directory as the tokenizer keys of a GGUF.

GGUF cannot express every tokenizer: it knows two kinds, and pre-tokenizers by name. Any other is refused. The keys are
then proved on a text: they must give the ids that transformers gives.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Backend

from bitgen.convert.auto_tokenizer import AutoTokenizer
from bitgen.convert.json_files import model_config, read_object, read_text, refusals
from bitgen.errors import BitgenError, FormatError, UnsupportedError, quoted
from bitgen.text.tokenizer import (
    BYTE,
    BYTE_TOKEN,
    CONTROL,
    GPT2,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    WORDS,
    Tokenizer,
)

MAX_TOKENS = 1 << 21
PROBE = (
    "Hello, world! I'm you're WE'LL they'd  two   three    spaces\ttab\r\nline\n\n\nlines \n x\n"
    "1 12 123 1234567890 3.14159 0x1F 1,000,000 ½ Ⅳ ...!!!??? (a+b)*c == [d]; $x_y-z % <b>&amp;</b> "
    "http://x.y/z?a=1 CamelCase snake_case naïve café ﬁ ſ e\u0301 Привет мир 你好,世界 "
    "日本語のテキスト 한국어 हिन्दी ไทย مرحبا שלום "
    "\U0001f642\U0001f680\U0001f468\u200d\U0001f469\u200d\U0001f467 \u00a0\u2003\u200b \ufeff\x00\x7f end "
)
"""Word boundaries, digits, white space, scripts, combining and control characters."""


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer of a directory in GGUF's keys."""

    keys: dict[str, Any]  # tokenizer.ggml.*, tokenizer.chat_template
    warning: str | None  # which tokens are not among them, and why

    @classmethod
    def read(cls, directory: Path, rows: int | None) -> Vocabulary:
        """The tokenizer in a directory. rows: of the embedding; None: as many as there are tokens.

        FormatError: a file is missing or broken. UnsupportedError: a tokenizer that GGUF's keys cannot express.
        """
        config = model_config(directory)
        original = AutoTokenizer.read(directory, config)
        beyond = {id: token for id, token in original.added.items() if rows is not None and id >= rows}
        try:
            keys = _keys(original, directory, config, rows)
        except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
            raise FormatError(f"{original.path}: not as expected: {quoted(error)}") from None
        _prove(original, keys, set(beyond))
        if not beyond:
            return cls(keys, None)
        names = ", ".join(quoted(token.content) for _, token in zip(range(8), beyond.values(), strict=False))
        more = f" and {len(beyond) - 8} more" if len(beyond) > 8 else ""
        return cls(keys, f"{original.path}: left out {names}{more}: the embedding has only {rows} rows")


def metadata_from_hf(directory: str | Path) -> dict[str, Any]:
    """The keys of Vocabulary.read, with the rows of the embedding from config.json where it names them."""
    directory = Path(directory)
    rows = model_config(directory).get("vocab_size")
    return Vocabulary.read(directory, rows if type(rows) is int and 0 < rows <= MAX_TOKENS else None).keys


def _keys(original: AutoTokenizer, directory: Path, config: Mapping[str, Any], rows: int | None) -> dict[str, Any]:
    """The GGUF keys of a tokenizer, not yet proved."""
    source, path = original.source, original.path
    if source["model"].get("type") != "BPE":
        raise UnsupportedError(f"{path}: a {source['model'].get('type')} model; GGUF's keys hold BPE")
    _check_flags(original)
    patterns = _patterns(path, source)
    tokens, types = _tokens(original, rows, sentence_piece=patterns is None)
    if patterns is None:
        kind = _sentence_piece(source, tokens, types)
    else:
        kind = _byte_level(path, source, original.backend, patterns)
    template = _chat_template(original.settings, directory)
    before, after = original.around(PROBE)
    if len(before) > 1 or len(after) > 1:
        raise UnsupportedError(f"{path}: puts {len(before)} tokens before a text, {len(after)} after; GGUF holds one")
    special = _special_ids(original, config, before, after)
    special |= _stop_keys(special, _stop_ids(directory, config), len(tokens))
    _check_used(original, {*before, *after}, template, len(tokens))
    return {
        **kind,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        **{f"tokenizer.ggml.{key}": value for key, value in special.items() if np.all(np.less(value, len(tokens)))},
        "tokenizer.ggml.add_bos_token": bool(before),
        **({"tokenizer.ggml.add_eos_token": True} if after else {}),
        **({"tokenizer.chat_template": template} if template else {}),
    }


def _check_flags(original: AutoTokenizer) -> None:
    """UnsupportedError for an added token that takes the spaces around it, or is none inside a word."""
    for token in original.added.values():
        for flag in ("lstrip", "rstrip", "single_word"):
            if getattr(token, flag):
                raise UnsupportedError(f"{original.path}: {quoted(token.content)} is an added token with {flag}, "
                                       "which GGUF cannot express")  # fmt: skip


def _check_used(original: AutoTokenizer, around: set[int], template: str | None, rows: int) -> None:
    """UnsupportedError where a token beyond the embedding is put around a text, or named by the chat template."""
    names = {content: key for key, content in original.named.items()}
    for id, token in original.added.items():
        if id < rows:
            continue
        words = [token.content] + ([names[token.content]] if token.content in names else [])
        if id in around or any(word in (template or "") for word in words):
            raise UnsupportedError(
                f"{original.path}: {quoted(token.content)} is used and has the id {id}, "
                f"but the embedding has only {rows} rows"
            )


def _tokens(original: AutoTokenizer, rows: int | None, sentence_piece: bool) -> tuple[list[str], list[int]]:
    """Tokens and their types, by id; ids without a token become unused fillers, as in other converters.

    Added tokens beyond the embedding's rows are left out.
    """
    path, model = original.path, original.source["model"]
    added = {token.content: (id, token) for id, token in original.added.items()}
    ids: dict[str, int] = model["vocab"] | {content: id for content, (id, _) in added.items()}
    size = rows or max(ids.values(), default=-1) + 1
    if not 0 < size <= MAX_TOKENS:
        raise FormatError(f"{path}: {size} tokens; expected 1 to {MAX_TOKENS}")
    tokens, types = [f"[PAD{id}]" for id in range(size)], [UNUSED] * size
    unknown = {model.get("unk_token"), original.named.get("unk_token")}
    for token, id in ids.items():
        if id >= size:
            if token in added:
                continue
            raise FormatError(f"{path}: {quoted(token)} has the id {id}, but the embedding has only {size} rows")
        if types[id] != UNUSED:
            raise FormatError(f"{path}: {quoted(token)} and {quoted(tokens[id])} share the id {id}")
        tokens[id], types[id] = token, NORMAL
        if sentence_piece and token in unknown:
            types[id] = UNKNOWN
        elif token in added:
            special = added[token][1].special or token in original.named.values()
            types[id] = CONTROL if special else USER_DEFINED
        elif sentence_piece and BYTE_TOKEN.fullmatch(token):
            types[id] = BYTE
    return tokens, types


def _patterns(path: Path, source: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The regular expressions of a byte-level pre-tokenizer, or None where it is SentencePiece's."""
    pre = source.get("pre_tokenizer") or {"type": "Sequence", "pretokenizers": []}
    steps = pre["pretokenizers"] if pre["type"] == "Sequence" else [pre]
    if not any(step["type"] == "ByteLevel" for step in steps):
        return None
    patterns: list[str] = []
    for step in steps:
        if step["type"] == "Split" and step["behavior"] == "Isolated" and not step.get("invert"):
            pattern = str(step["pattern"]["Regex"])  # line ends stand for themselves in some files
            patterns.append(pattern.replace("\r", r"\r").replace("\n", r"\n"))
        elif step["type"] == "ByteLevel" and not step["add_prefix_space"]:
            patterns += [GPT2] if step.get("use_regex", True) else []
        else:
            raise UnsupportedError(f"{path}: the pre-tokenizer step {quoted(json.dumps(step))} has no GGUF name")
    return tuple(patterns)


def _byte_level(path: Path, source: Mapping[str, Any], original: Backend, patterns: tuple[str, ...]) -> dict[str, Any]:
    """Keys of a byte-level vocabulary: merges and the name of its pre-tokenizer."""
    normalizer = (source.get("normalizer") or {}).get("type")
    ignores = bool(source["model"].get("ignore_merges"))
    wanted = (patterns, normalizer)
    pre = next((n for n, w in WORDS.items() if (w.patterns, "NFC" if w.nfc else None) == wanted), None)
    if pre is None:
        raise UnsupportedError(
            f"{path}: no GGUF name for the pre-tokenizer {quoted(patterns)}, normalizer {normalizer}"
        )
    if WORDS[pre].ignore_merges != ignores and not _merges_reach_all(source, original):
        raise UnsupportedError(f"{path}: no GGUF name for {pre} with ignore_merges={str(ignores).lower()}")
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in _pairs(source)],
    }


def _merges_reach_all(source: Mapping[str, Any], original: Backend) -> bool:
    """Whether the merges alone make every token, so that ignore_merges makes no difference."""
    plain = Backend.from_str(original.to_str())
    plain.model.ignore_merges = False
    return all(len(plain.model.tokenize(token)) == 1 for token in source["model"]["vocab"])


def _sentence_piece(source: Mapping[str, Any], tokens: list[str], types: list[int]) -> dict[str, Any]:
    """Keys of a SentencePiece vocabulary. The score of a piece is minus the rank of the first merge that makes it.

    Pieces of several characters that no merge makes never come from a text; `types` marks them as unused.
    """
    pairs = _pairs(source)
    rank: dict[str, int] = {}
    for i, (left, right) in enumerate(pairs):
        rank.setdefault(left + right, i)
    for id, token in enumerate(tokens):
        if types[id] == NORMAL and len(token) > 1 and token not in rank:
            types[id] = UNUSED
    steps = source.get("normalizer") or {}
    prepends = any(step["type"] == "Prepend" for step in steps.get("normalizers", [steps]) if step)
    pre = source.get("pre_tokenizer") or {}
    prepends |= pre.get("type") == "Metaspace" and pre.get("prepend_scheme", "always") != "never"
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": np.array([-rank.get(token, len(pairs)) for token in tokens], np.float32),
        "tokenizer.ggml.add_space_prefix": prepends,
    }


def _pairs(source: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The merges, stored as "a b" or as ["a", "b"]."""
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in source["model"]["merges"]]
    return [(left, right) for left, right in pairs]


def _special_ids(
    original: AutoTokenizer, config: Mapping[str, Any], before: list[int], after: list[int]
) -> dict[str, Any]:
    """Keys of special tokens: those around a text, those that the tokenizer names, else those of config.json."""
    found: dict[str, Any] = {}
    for key, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        named = original.named.get(f"{key}_token")
        id = config.get(f"{key}_token_id") if named is None else original.backend.token_to_id(named)
        if type(id) is int and id >= 0:
            found[f"{name}_token_id"] = id
    bos = original.named.get("bos_token")
    if before and bos is not None and found["bos_token_id"] != before[0]:
        raise UnsupportedError(f"{original.path}: puts token {before[0]} before a text; bos_token is {quoted(bos)}")
    around = {"bos_token_id": before, "eos_token_id": after}
    return found | {key: ids[0] for key, ids in around.items() if ids}


def _stop_ids(directory: Path, config: Mapping[str, Any]) -> list[int]:
    """The ids that end a text, of generation_config.json, else of config.json: one number or a list."""
    generation = read_object(directory / "generation_config.json") or {}
    name, value = "generation_config.json", generation.get("eos_token_id")
    if value is None:
        name, value = "config.json", config.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(type(id) is not int for id in ids):
        raise FormatError(f"{directory / name}: eos_token_id is {quoted(value)}; expected an id or a list of ids")
    return ids


def _stop_keys(special: Mapping[str, Any], stops: list[int], rows: int) -> dict[str, Any]:
    """Keys of the tokens that end a text: one each of three kinds, and all of them in a list where there are several.

    Ids without a row of the embedding never come.
    """
    named = special.get("eos_token_id", -1)
    ids = [id for id in dict.fromkeys([named, *stops]) if 0 <= id < rows]
    keys: dict[str, Any] = dict(zip(("eos_token_id", "eot_token_id", "eom_token_id"), ids, strict=False))
    return keys | ({"eos_token_ids": np.array(ids, np.int32)} if len(ids) > 1 else {})


def _chat_template(settings: Mapping[str, Any], directory: Path) -> str | None:
    """The Jinja text, from a file of its own or from tokenizer_config.json (of several, the default one)."""
    more = sorted((directory / "additional_chat_templates").glob("*.jinja"))
    files = {path.stem: read_text(path) for path in more} | {"default": read_text(directory / "chat_template.jinja")}
    if any(text is not None for text in files.values()):
        return files["default"]
    template = settings.get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}
    if isinstance(template, dict):
        template = template.get("default")
    if not isinstance(template, str | None):
        raise FormatError(f"{directory / 'tokenizer_config.json'}: chat_template is {quoted(template)}, no text")
    return template


def _prove(original: AutoTokenizer, keys: Mapping[str, Any], beyond: set[int]) -> None:
    """UnsupportedError unless the keys encode the probe, and text around added tokens, as the original does.

    SentencePiece is not tried around added tokens: versions of one tokenizer differ in whether a space precedes the
    text after them. Here it does, as in llama.cpp. beyond: ids of tokens that are left out.
    """
    path, backend = original.path, original.backend
    try:
        tokenizer = Tokenizer.from_metadata(keys)
    except BitgenError as error:
        raise type(error)(f"{path}: {error}") from None
    texts = [PROBE, PROBE.lower()]
    if keys["tokenizer.ggml.model"] == "gpt2":
        added = [token.content for id, token in original.added.items() if id not in beyond]
        texts += [f"Once upon {token} a{token}time" for token in added]
    for text in texts:
        with refusals(f"{path}"):
            wanted = backend.encode(text, add_special_tokens=False).ids
        given = tokenizer.encode(text, add_bos=False)
        if wanted != given:
            pairs = enumerate(zip(wanted, given, strict=False))
            at = next((i for i, (a, b) in pairs if a != b), min(len(wanted), len(given)))
            near = quoted(backend.decode(wanted[at : at + 4]))
            raise UnsupportedError(f"{path}: GGUF cannot express this tokenizer: it differs at {near}")
