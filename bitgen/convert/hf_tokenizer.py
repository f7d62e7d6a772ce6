"""tokenizer.json and tokenizer_config.json of a Hugging Face directory, as the tokenizer keys of a GGUF.

GGUF cannot express every tokenizer: it knows two kinds, and pre-tokenizers by name. Any other is refused. The keys are
then proved on a text: they must give the ids that the original gives.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Backend

from bitgen.errors import BitgenError, FormatError, UnsupportedError
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


def metadata_from_hf(directory: str | Path) -> dict[str, Any]:
    """GGUF key-values (tokenizer.ggml.*, tokenizer.chat_template) of the tokenizer in `directory`.

    FormatError: a file is missing or broken. UnsupportedError: a tokenizer that GGUF's keys cannot express.
    """
    directory = Path(directory)
    path = directory / "tokenizer.json"
    source = _json(path)
    if source is None:
        raise FormatError(f"{path} is missing; loading and saving the tokenizer with transformers makes one")
    try:
        original = Backend.from_file(str(path))
    except Exception as error:  # the package raises nothing narrower
        raise FormatError(f"{path}: cannot be read as a tokenizer: {error}") from None
    try:
        keys = _keys(path, source, original, directory)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise FormatError(f"{path}: not as expected: {error!r}") from None
    _prove(path, original, keys)
    return keys


def _keys(path: Path, source: Mapping[str, Any], original: Backend, directory: Path) -> dict[str, Any]:
    """The GGUF keys of a tokenizer, not yet proved."""
    if source["model"].get("type") != "BPE":
        raise UnsupportedError(f"{path}: a {source['model'].get('type')} model; GGUF's keys hold BPE")
    settings = _json(directory / "tokenizer_config.json") or {}
    config = _json(directory / "config.json") or {}
    patterns = _patterns(path, source)
    tokens, types = _tokens(path, source, config, sentence_piece=patterns is None)
    if patterns is None:
        kind = _sentence_piece(source, tokens, types)
    else:
        kind = _byte_level(path, source, original, patterns)
    special = _special_ids(settings, config, _json(directory / "generation_config.json") or {}, original)
    end = _appended(original)
    if end is not None:
        special["tokenizer.ggml.eos_token_id"] = end
    add_bos = settings.get("add_bos_token")
    if not isinstance(add_bos, bool):
        add_bos = original.encode("a").ids[:1] == [special.get("tokenizer.ggml.bos_token_id")]
    template = _chat_template(settings, directory)
    return {
        **kind,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        **special,
        "tokenizer.ggml.add_bos_token": add_bos,
        **({"tokenizer.ggml.add_eos_token": True} if end is not None else {}),
        **({"tokenizer.chat_template": template} if template else {}),
    }


def _tokens(
    path: Path, source: Mapping[str, Any], config: Mapping[str, Any], sentence_piece: bool
) -> tuple[list[str], list[int]]:
    """Tokens and their types, by id; ids without a token become unused fillers, as in other converters."""
    model, added = source["model"], {t["content"]: t for t in source.get("added_tokens") or []}
    ids: dict[str, int] = model["vocab"] | {content: t["id"] for content, t in added.items()}
    size = max(int(config.get("vocab_size", 0)), max(ids.values(), default=-1) + 1)
    if not 0 < size <= MAX_TOKENS or min(ids.values()) < 0:
        raise FormatError(f"{path}: token ids from {min(ids.values(), default=0)} to {size - 1}")
    tokens, types = [f"[PAD{id}]" for id in range(size)], [UNUSED] * size
    for token, id in ids.items():
        if types[id] != UNUSED:
            raise FormatError(f"{path}: {token!r} and {tokens[id]!r} share the id {id}")
        tokens[id], types[id] = token, NORMAL
        if sentence_piece and token == model.get("unk_token"):
            types[id] = UNKNOWN
        elif token in added:
            types[id] = CONTROL if added[token]["special"] else USER_DEFINED
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
            patterns.append(step["pattern"]["Regex"])
        elif step["type"] == "ByteLevel" and not step["add_prefix_space"]:
            patterns += [GPT2] if step.get("use_regex", True) else []
        else:
            raise UnsupportedError(f"{path}: the pre-tokenizer step {json.dumps(step)} has no GGUF name")
    return tuple(patterns)


def _byte_level(path: Path, source: Mapping[str, Any], original: Backend, patterns: tuple[str, ...]) -> dict[str, Any]:
    """Keys of a byte-level vocabulary: merges and the name of its pre-tokenizer."""
    normalizer = (source.get("normalizer") or {}).get("type")
    ignores = bool(source["model"].get("ignore_merges"))
    wanted = (patterns, normalizer)
    pre = next((n for n, w in WORDS.items() if (w.patterns, "NFC" if w.nfc else None) == wanted), None)
    if pre is None:
        raise UnsupportedError(f"{path}: no GGUF name for the pre-tokenizer {patterns}, normalizer {normalizer}")
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
    settings: Mapping[str, Any], config: Mapping[str, Any], generation: Mapping[str, Any], original: Backend
) -> dict[str, int]:
    """Keys of special tokens: by the names of tokenizer_config.json, else by the ids of config.json.

    Where generation_config.json has several end tokens, the first that is not the usual one ends a turn.
    """
    found: dict[str, int] = {}
    for key, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        token = settings.get(f"{key}_token")
        token = token.get("content") if isinstance(token, dict) else token
        id = original.token_to_id(token) if isinstance(token, str) else _first(config.get(f"{key}_token_id"))
        if isinstance(id, int) and 0 <= id < original.get_vocab_size():
            found[f"tokenizer.ggml.{name}_token_id"] = id
    stops, eos = generation.get("eos_token_id"), found.get("tokenizer.ggml.eos_token_id")
    others = [id for id in stops if id != eos] if isinstance(stops, list) else []
    if others:
        found["tokenizer.ggml.eot_token_id"] = int(others[0])
    return found


def _appended(original: Backend) -> int | None:
    """Id of the special token that the tokenizer appends to a text, as in embedding models; None without one."""
    ids = original.encode("a").ids
    special = {id for id, token in original.get_added_tokens_decoder().items() if token.special}
    return ids[-1] if len(ids) > 1 and ids[-1] in special else None


def _first(id: Any) -> Any:
    return id[0] if isinstance(id, list) and id else id


def _chat_template(settings: Mapping[str, Any], directory: Path) -> str | None:
    """The Jinja text, from its own file or from tokenizer_config.json (of several, the default one)."""
    path = directory / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):
        template = {t["name"]: t["template"] for t in template}.get("default")
    return template if isinstance(template, str) else None


def _prove(path: Path, original: Backend, keys: Mapping[str, Any]) -> None:
    """UnsupportedError unless the keys encode the probe, and text around special tokens, as the original does.

    SentencePiece is not tried around special tokens: versions of one tokenizer differ in whether a space precedes the
    text after them. Here it does, as in llama.cpp.
    """
    try:
        tokenizer = Tokenizer.from_metadata(keys)
    except BitgenError as error:
        raise type(error)(f"{path}: {error}") from None
    texts = [PROBE, PROBE.lower()]
    if keys["tokenizer.ggml.model"] == "gpt2":
        added = [token.content for token in original.get_added_tokens_decoder().values()]
        texts += [f"Once upon {token} a{token}time" for token in added[:64]]
    for text in texts:
        wanted = original.encode(text, add_special_tokens=False).ids
        given = tokenizer.encode(text, add_bos=False)
        if wanted != given:
            pairs = enumerate(zip(wanted, given, strict=False))
            at = next((i for i, (a, b) in pairs if a != b), min(len(wanted), len(given)))
            near = original.decode(wanted[at : at + 4])
            raise UnsupportedError(f"{path}: GGUF cannot express this tokenizer: it differs at {near!r}")


def _json(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file, or None where there is no file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise FormatError(f"{path}: not a JSON object")
    return values
