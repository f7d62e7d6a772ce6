"""What transformers' AutoTokenizer makes of the tokenizer files in a directory, without transformers.

tokenizer.json is not all of a tokenizer: other files add tokens, name the special ones, and name a class that may
build all but the vocabulary anew. The rules here are those of transformers 5.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from bitgen.convert.json_files import parse_object, read_object, read_text, refusals
from bitgen.errors import FormatError, UnsupportedError, quoted
from bitgen.text.tokenizer import QWEN2, QWEN35

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The keys that name special tokens, in transformers' order."""
FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
"""The keys of an added token, beside its content."""

_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
_END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class Rebuilt:
    """A class of tokenizers that takes vocabulary and merges from tokenizer.json, and brings the rest itself."""

    model: dict[str, Any]  # fields of tokenizer.json's model
    names: dict[str, str]  # special tokens where no file names them
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None


_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def _isolated(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


REBUILT: dict[str, Rebuilt] = {
    "LlamaTokenizer": Rebuilt(
        {"fuse_unk": True, "byte_fallback": True, "unk_token": None},
        {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
        pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
    ),
    "GemmaTokenizer": Rebuilt(
        {"fuse_unk": True, "byte_fallback": True, "unk_token": "<unk>"},
        {name: f"<{name[:-6]}>" for name in ("unk_token", "bos_token", "eos_token", "pad_token", "mask_token")},
        _SPACES,
        {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
    ),
    "Qwen2Tokenizer": Rebuilt(
        {"fuse_unk": False, "byte_fallback": False, "unk_token": None},
        {"unk_token": _END_OF_TEXT, "eos_token": _END_OF_TEXT, "pad_token": _END_OF_TEXT},
        {"type": "NFC"},
        {"type": "Sequence", "pretokenizers": [_isolated(QWEN2), _BYTE_LEVEL | {"use_regex": False}]},
    ),
    "Qwen3_5Tokenizer": Rebuilt(
        {"fuse_unk": False, "byte_fallback": False, "unk_token": None},
        {"unk_token": _END_OF_TEXT, "eos_token": _END_OF_TEXT, "pad_token": _END_OF_TEXT},
        {"type": "NFC"},
        {"type": "Sequence", "pretokenizers": [_isolated(QWEN35), _BYTE_LEVEL | {"use_regex": False}]},
    ),
    "GPT2Tokenizer": Rebuilt(
        {"fuse_unk": False, "byte_fallback": False, "unk_token": None},
        {"unk_token": _END_OF_TEXT, "bos_token": _END_OF_TEXT, "eos_token": _END_OF_TEXT},
        pre_tokenizer=_BYTE_LEVEL,
    ),
}
"""`tokenizer_class` without "Fast" -> what it brings."""

UNKNOWN_REBUILT = (
    "BlenderbotTokenizer", "CLIPTokenizer", "CodeLlamaTokenizer", "CohereTokenizer", "DebertaTokenizer",
    "GPTNeoXTokenizer", "HerbertTokenizer", "LukeTokenizer", "NllbTokenizer", "RobertaTokenizer",
    "Siglip2Tokenizer", "WhisperTokenizer",
)  # fmt: skip
"""Classes that bring something too, none of which a ternary model has had."""

CLASS_OF_MODEL = {
    "qwen3": "Qwen2Tokenizer",
    "gemma3_text": "GemmaTokenizer",
    "qwen3_5": "Qwen3_5Tokenizer",
    "qwen3_5_text": "Qwen3_5Tokenizer",
}
"""model_type -> tokenizer class, where no file names one. Of other models it is tokenizer.json as it is."""

ALWAYS = ("qwen3_5",)
"""Values of model_type for which the class is CLASS_OF_MODEL's, whatever the files name."""

UNSUPPORTED: dict[str, tuple[Any, ...]] = {"split_special_tokens": (None, False), "fast_tokenizer_files": (None, [])}
"""Keys of tokenizer_config.json that change the tokens -> the values that do not."""


@dataclass(frozen=True)
class AutoTokenizer:
    """A tokenizer and the special tokens that its files name, by their key in NAMED."""

    path: Path  # tokenizer.json
    backend: Backend
    named: dict[str, str]
    settings: dict[str, Any]  # tokenizer_config.json

    @classmethod
    def read(cls, directory: Path, config: Mapping[str, Any]) -> AutoTokenizer:
        """The tokenizer of a directory. config: of the model. FormatError or UnsupportedError names the file."""
        path = directory / "tokenizer.json"
        text = read_text(path)
        if text is None:
            raise FormatError(f"{path} is missing; loading and saving the tokenizer with transformers makes one")
        source, settings = parse_object(text, f"{path}"), read_object(directory / "tokenizer_config.json") or {}
        _check_ids(path, source)
        where = directory / "tokenizer_config.json"
        for key, neutral in UNSUPPORTED.items():
            if settings.get(key) not in neutral:
                raise UnsupportedError(f"{where}: {key} = {quoted(settings[key])} is not supported")
        rebuilt = _rebuilt(where, settings, config, '"ByteLevel"' in text)
        declared = _declared(directory, source, settings)
        if rebuilt:
            settings = rebuilt.names | settings
            source = _rebuild(source, rebuilt, settings)
            text = json.dumps(source)
        with refusals(f"{path}"):
            backend = Backend.from_str(text)
            if backend.padding:
                settings.setdefault("pad_token", backend.padding["pad_token"])
            backend.no_truncation()  # transformers truncates and pads only where it is asked to
            backend.no_padding()
        found = _Specials(where, settings, {token.content: token for token in declared.values()})
        known = {repr(token) for token in backend.get_added_tokens_decoder().values()}
        added = [token for _, token in sorted(declared.items()) if repr(token) not in known]
        with refusals(f"{where}"):
            backend.add_tokens([*added, *found.missing(backend, added)])
        return cls(path, backend, found.named, settings)

    @cached_property
    def source(self) -> dict[str, Any]:
        """All of it, as tokenizer.json spells it."""
        return parse_object(self.backend.to_str(), f"{self.path}")

    @cached_property
    def added(self) -> dict[int, AddedToken]:
        """The tokens that are found in a text before it is cut, by id."""
        return dict(sorted(self.backend.get_added_tokens_decoder().items()))

    def around(self, text: str) -> tuple[list[int], list[int]]:
        """Ids that the post-processor puts before and after a text. UnsupportedError: it does something else."""
        with refusals(f"{self.path}"):  # an unknown token that the vocabulary lacks is noticed here
            plain, full = self.backend.encode(text, add_special_tokens=False).ids, self.backend.encode(text).ids
        for at in range(len(full) - len(plain) + 1):
            if full[at : at + len(plain)] == plain:
                return full[:at], full[at + len(plain) :]
        raise UnsupportedError(f"{self.path}: the post-processor changes the tokens of a text")


def _check_ids(path: Path, source: Mapping[str, Any]) -> None:
    """FormatError where two words of the vocabulary have one id, of which `tokenizers` would drop one in silence."""
    model = source.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    words: dict[Any, str] = {}
    for word, id in vocab.items() if isinstance(vocab, dict) else ():
        if isinstance(id, int) and words.setdefault(id, word) != word:
            raise FormatError(f"{path}: {quoted(word)} and {quoted(words[id])} share the id {id}")


def _rebuilt(where: Path, settings: Mapping[str, Any], config: Mapping[str, Any], bytes: bool) -> Rebuilt | None:
    """What the tokenizer's class brings; None where tokenizer.json is taken as it is.

    bytes: whether tokenizer.json is byte-level, which the class LlamaTokenizer then leaves alone.
    """
    kind = str(config.get("model_type"))
    named = None if kind in ALWAYS else settings.get("tokenizer_class") or config.get("tokenizer_class")
    name = named or CLASS_OF_MODEL.get(kind)
    name = str(name).removesuffix("Fast")
    if name in UNKNOWN_REBUILT:
        raise UnsupportedError(f"{where}: tokenizer_class {name!r} is not supported; known: {', '.join(REBUILT)}")
    return None if name == "LlamaTokenizer" and bytes else REBUILT.get(name)


def _rebuild(source: Mapping[str, Any], rebuilt: Rebuilt, settings: Mapping[str, Any]) -> dict[str, Any]:
    """tokenizer.json as a class builds it: no token is added yet, and a key may drop the space before a text."""
    model = source.get("model") if isinstance(source.get("model"), dict) else {}
    pre = dict(rebuilt.pre_tokenizer or {})
    spaced = settings.get("add_prefix_space")
    if pre["type"] == "Metaspace" and spaced is not None and not spaced:
        pre["prepend_scheme"] = "never"
    elif pre["type"] == "Metaspace" and settings.get("legacy"):
        pre["prepend_scheme"] = "always"
    if pre["type"] == "ByteLevel":
        pre["add_prefix_space"] = bool(spaced)
    brought = dict(rebuilt.model)
    if brought["unk_token"]:
        brought["unk_token"] = next(_texts({"unk_token": settings["unk_token"]}))
    fixed = {"ignore_merges": False, "dropout": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    return {
        **source,
        "model": {**(model or {}), **fixed, **brought},
        "normalizer": rebuilt.normalizer,
        "pre_tokenizer": pre,
        "added_tokens": [],
    }


def _declared(directory: Path, source: Mapping[str, Any], settings: dict[str, Any]) -> dict[int, AddedToken]:
    """The added tokens by the ids that files give them; special_tokens_map.json goes into `settings`.

    `added_tokens_decoder` of tokenizer_config.json stands alone. Without it, special_tokens_map.json comes before
    tokenizer_config.json, and tokenizer.json before added_tokens.json.
    """
    if "additional_special_tokens" in settings and not settings.get("extra_special_tokens"):
        settings["extra_special_tokens"] = settings.pop("additional_special_tokens")
    where = directory / "tokenizer_config.json"
    try:
        if "added_tokens_decoder" in settings:
            return {int(id): _added(token) for id, token in settings["added_tokens_decoder"].items()}
        where = directory / "special_tokens_map.json"
        settings |= read_object(where) or {}
        special = {str(text) for text in _texts(settings)}
        where = directory / "added_tokens.json"
        tokens: dict[int, AddedToken] = {}
        for text, id in (read_object(where) or {}).items():
            tokens[_id(id)] = AddedToken(text, normalized=text not in special, special=text in special)
        where = directory / "tokenizer.json"
        for token in source.get("added_tokens") or []:
            tokens[_id(token["id"])] = _added(token)
        return tokens
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise FormatError(f"{where}: the added tokens are not understood: {quoted(error)}") from None


def _added(token: Mapping[str, Any]) -> AddedToken:
    """An added token of an object with its text and flags; what else the object has, transformers ignores too."""
    if not isinstance(token["content"], str) or not all(isinstance(token.get(flag, False), bool) for flag in FLAGS):
        raise TypeError(f"{quoted(token)} is no token")
    return AddedToken(token["content"], **{flag: token[flag] for flag in FLAGS if flag in token})


def _id(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise ValueError(f"{quoted(value)} is no id")
    return value


def _texts(settings: Mapping[str, Any]) -> Iterator[Any]:
    """The special tokens that settings name, as texts."""
    extra = settings.get("extra_special_tokens") or []
    values = [settings.get(key) for key in NAMED]
    for value in [*values, *(extra if isinstance(extra, list) else [])]:
        if value is not None:
            yield value.get("content") if isinstance(value, dict) else value


class _Specials:
    """The special tokens of the settings: those with a name, and others."""

    def __init__(self, where: Path, settings: Mapping[str, Any], declared: Mapping[str, AddedToken]) -> None:
        self._declared = declared
        extra = settings.get("extra_special_tokens")
        if extra is None:
            extra = settings.get("additional_special_tokens") or []
        models = {k: v for k, v in settings.items() if k.endswith("_token") and k not in NAMED and isinstance(v, str)}
        if isinstance(extra, dict):
            models, extra = models | extra, []
        names = {key: settings[key] for key in NAMED if settings.get(key) is not None} | models
        try:
            self._tokens = {key: self._token(value) for key, value in names.items()}
            self._extra = [self._token(value) for value in extra]
        except (TypeError, KeyError) as error:
            raise FormatError(f"{where}: the special tokens are not understood: {quoted(error)}") from None
        self.named = {key: token.content for key, token in self._tokens.items() if key in NAMED}

    def missing(self, backend: Backend, added: list[AddedToken]) -> list[AddedToken]:
        """The special tokens that neither the backend nor `added` has."""
        known = {token.content for token in [*backend.get_added_tokens_decoder().values(), *added]}
        return [token for token in [*self._tokens.values(), *self._extra] if token.content not in known]

    def _token(self, value: Any) -> AddedToken:
        """A special token, given as its text or as an object, with the flags of the added token of that text."""
        token = _added({**(value if isinstance(value, dict) else {"content": value}), "special": True})
        return self._declared.get(token.content, token)
