"""Tokenizers from a GGUF's own vocabulary, through the `tokenizers` package.

Two kinds of vocabulary are in use. "gpt2": byte-level BPE, where every byte is spelt as one printable
character and a regular expression, named by `tokenizer.ggml.pre`, first cuts the text into words. "llama":
SentencePiece, where spaces are spelt ▁ and merges follow from the pieces' scores. Text comes back from ids
here, byte by byte, so that characters split over several tokens can be streamed.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from bitgen.errors import BitgenError, FormatError, UnsupportedError, brief, quoted
from bitgen.text.merges import Merges, listed_merges, merges_of_pieces

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Values of tokenizer.ggml.token_type."""

SPACE, BYTE_TOKEN = "▁", re.compile("<0x([0-9A-Fa-f]{2})>")
"""How SentencePiece spells a space, and a byte that is in no piece."""
MOST_SPECIALS = 1 << 20
"""Characters of all tokens that are found in a text before it is cut: a hundred times what models have."""
STOP_WORDS = (
    "<|eot_id|>", "<|end_of_text|>", "<|endoftext|>", "<|im_end|>", "<|eom_id|>", "</s>", "<eos>", "<end_of_turn>",
    "<turn|>", "<|tool_response>", "<end_of_utterance>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<｜end▁of▁sentence｜>",
    "<|end|>", "<|return|>", "<|call|>", "<|calls|>", "<|flush|>",
)  # fmt: skip
"""Control and user-defined tokens that end a turn, whatever the file says of them: those that llama.cpp knows."""
NO_STOPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("<|end|>", ("<|return|>", "<|call|>")),
    ("<|end|>", ("<|return|>", "<|calls|>")),
    ("<|end|>", ("<|flush|>", "<|call|>")),
    ("<|end|>", ("<|flush|>", "<|calls|>")),
    ("</s>", ("<|tool_response>",)),
)
"""Word that ends no turn -> in a vocabulary that has these, where it only ends a part of one."""

SPECIAL = {
    "bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "sep_token": "seperator", "pad_token": "padding",
    "cls_token": "cls", "mask_token": "mask",
}  # fmt: skip
"""What chat templates call special tokens -> what GGUF calls them, in tokenizer.ggml.*_token_id."""

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN35 = QWEN2.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")
HUNYUAN = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"""
    r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CJK = "[一-龥぀-ゟ゠-ヿ]+"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class Words:
    """How a byte-level vocabulary cuts text into words, and what goes with it."""

    patterns: tuple[str, ...]  # applied one after the other
    ignore_merges: bool = False  # a word that is a token is that token, whatever the merges say
    add_bos: bool = False  # where the file does not say
    nfc: bool = False  # Unicode normalisation first


_LLAMA3 = Words((LLAMA3,), ignore_merges=True, add_bos=True)
WORDS: dict[str, Words] = {
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "falcon3": _LLAMA3,
    "falcon_e": _LLAMA3,
    "qwen2": Words((QWEN2,), nfc=True),
    "qwen35": Words((QWEN35,), nfc=True),
    "gpt-2": Words((GPT2,)),
    "hunyuan-dense": Words((r"\p{N}{1,3}", CJK, HUNYUAN)),
    "default": Words((r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
}
"""tokenizer.ggml.pre -> Words. The names are llama.cpp's; "default" is what it does where there is none."""

_LLAMA3_TOKENS = 128256
_BITNET_2B4T = ("bitnet-25", "bitnet-b1.58")
"""Files of these architectures with that many tokens lack the key, and mean llama-bpe."""


def _byte_alphabet() -> dict[str, int]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


BYTE_ALPHABET = _byte_alphabet()
"""The character that spells a byte in a byte-level vocabulary -> the byte, in the order of GPT-2's."""


class Tokenizer:
    """Text to ids and back. Made by `from_metadata`; immutable, and safe to share between threads."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.bos, self.eos, self.eot = vocabulary.bos, vocabulary.eos, vocabulary.eot
        self.add_bos = vocabulary.add_bos and self.bos is not None
        self.add_eos = vocabulary.add_eos and self.eos is not None  # after a text to embed
        self._parsing = vocabulary.backend(parse_special=True)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """The tokenizer in a GGUF's key-values; FormatError or UnsupportedError names the key at fault."""
        return cls(Vocabulary(metadata))

    def __len__(self) -> int:
        return len(self.vocabulary.tokens)

    @property
    def kind(self) -> str:
        """What it is, in words."""
        return self.vocabulary.kind

    def word(self, id: int | None) -> str:
        """How a token is spelt in a text that is to be encoded; "" of None."""
        return "" if id is None else self.vocabulary.tokens[id]

    @cached_property
    def special_words(self) -> dict[str, str]:
        """The spellings of the special tokens that the file names, by the names of SPECIAL."""
        v = self.vocabulary
        ids = {name: v.metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in SPECIAL.items()}
        return {name: v.tokens[id] for name, id in ids.items() if isinstance(id, int) and 0 <= id < len(v.tokens)}

    @cached_property
    def control_words(self) -> frozenset[str]:
        """The spellings of the tokens that steer a model instead of standing for text."""
        v = self.vocabulary
        return frozenset(word for word, id in v.ids.items() if v.types[id] == CONTROL and word)

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Ids after which a model has nothing more to say."""
        v = self.vocabulary
        words = {w for w in STOP_WORDS if w in v.ids and v.types[v.ids[w]] in (CONTROL, USER_DEFINED)}
        words -= {word for word, beside in NO_STOPS if words.issuperset(beside)}
        return frozenset(v.stops | {v.ids[word] for word in words})

    def encode(self, text: str, add_bos: bool | None = None, parse_special: bool = True) -> list[int]:
        """Ids of a text.

        add_bos: begin with the begin-of-text token (None: as the model was trained), unless the text does.
        parse_special: "<|eot_id|>" in the text becomes that token; False: it is spelt out, as any other text.
        """
        backend = self._parsing if parse_special else self._plain
        try:
            ids: list[int] = backend.encode(text, add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError):
            raise BitgenError("the text is not valid Unicode: it holds lone surrogates") from None
        wanted = self.add_bos if add_bos is None else add_bos
        if wanted and self.bos is not None and ids[:1] != [self.bos]:
            ids = [self.bos, *ids]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids. Control tokens have none; bytes that are not UTF-8 become U+FFFD."""
        stream = TextStream(self, start=True)
        return "".join([stream.push(id) for id in ids]) + stream.flush()

    def piece(self, id: int) -> bytes:
        """The bytes of one token; of an id beyond the vocabulary, those of U+FFFD."""
        return self.vocabulary.piece(id) if 0 <= id < len(self) else "\ufffd".encode()

    @property
    def strips_first_space(self) -> bool:
        """Whether a text's first space was put there by the encoder."""
        return self.vocabulary.space_prefix

    @cached_property
    def _plain(self) -> Backend:
        return self.vocabulary.backend(parse_special=False)


class TextStream:
    """Text from ids as they come, held back until its characters are complete.

    start: the first id begins the text, so that the space an encoder puts before it is dropped; a model's
    continuation of a prompt keeps it.
    """

    def __init__(self, tokenizer: Tokenizer, start: bool = False) -> None:
        self._tokenizer = tokenizer
        self._strip = start and tokenizer.strips_first_space
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """The text that this token completes, perhaps none."""
        piece = self._tokenizer.piece(id)
        if piece and self._strip:
            piece, self._strip = piece.removeprefix(b" "), False
        return self._utf8.decode(piece)

    def flush(self) -> str:
        """What is left at the end: U+FFFD for an incomplete character, else nothing."""
        return self._utf8.decode(b"", final=True)


class Vocabulary:
    """The tokenizer keys of a GGUF, checked; builds the backends that encode."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.metadata = metadata
        self.model: str = self._key("model", str, "")
        if self.model not in ("gpt2", "llama"):
            raise UnsupportedError(f"tokenizer.ggml.model is {quoted(self.model)}; supported: gpt2, llama")
        self.tokens: list[str] = self._key("tokens", list, [])
        if not self.tokens or not all(isinstance(token, str) for token in self.tokens):
            raise FormatError("tokenizer.ggml.tokens is not a list of texts")
        self.types = self._numbers("token_type", np.full(len(self.tokens), NORMAL), "iu").tolist()
        self.ids = self._ids()
        self.bos, self.eos, self.eot = (self._id(f"{name}_token_id") for name in ("bos", "eos", "eot"))
        self.stops = {id for id in (self.eos, self.eot, self._id("eom_token_id")) if id is not None} | self._stops()
        self.words = self._words() if self.model == "gpt2" else None
        self.add_bos = bool(self._key("add_bos_token", bool, self.words.add_bos if self.words else True))
        self.add_eos = bool(self._key("add_eos_token", bool, False))
        self.space_prefix = self.model == "llama" and bool(self._key("add_space_prefix", bool, True))

    @property
    def kind(self) -> str:
        """What it is, in words."""
        return f"byte-level BPE ({self.pre})" if self.words else "SentencePiece BPE"

    @cached_property
    def pre(self) -> str:
        """The name of the pre-tokenizer, also where the file lacks it."""
        architecture = self.metadata.get("general.architecture")
        forced = isinstance(architecture, str) and architecture in _BITNET_2B4T and len(self.tokens) == _LLAMA3_TOKENS
        return str(self._key("pre", str, "llama-bpe" if forced else "default"))

    def backend(self, parse_special: bool) -> Backend:
        """An encoder. User-defined tokens are always found in a text, control tokens only if asked."""
        try:
            backend = self._byte_level(self.words) if self.words else self._sentence_piece()
            backend.add_special_tokens(
                [
                    AddedToken(token, normalized=False, special=type != USER_DEFINED)
                    for token, type in self.specials(parse_special)
                ]
            )
        except (FormatError, UnsupportedError):
            raise
        except Exception as error:  # the package raises nothing narrower
            raise FormatError(f"the vocabulary cannot be used: {brief(str(error))}") from None
        return backend

    def piece(self, id: int) -> bytes:
        """The bytes that a token stands for."""
        token, type = self.tokens[id], self.types[id]
        if type == CONTROL:
            return b""
        if type == USER_DEFINED:
            return token.encode()
        if self.words:
            known = all(char in BYTE_ALPHABET for char in token)
            return bytes(BYTE_ALPHABET[char] for char in token) if known else token.encode()
        if type == UNKNOWN:
            return " \u2047 ".encode()  # as SentencePiece shows it
        if type == BYTE:
            return bytes([_byte_value(token)])
        return token.replace(SPACE, " ").encode()

    @cached_property
    def merges(self) -> Merges:
        """Pairs of tokens that make a token, the first to be joined first."""
        if self.words:
            return listed_merges(self._key("merges", list, []), self.ids)
        scores = self._numbers("scores", None, "f").tolist()
        pieces = zip(self.tokens, self.types, scores, strict=True)
        joined = {token: float(score) for token, type, score in pieces if type in (NORMAL, USER_DEFINED)}
        return merges_of_pieces(joined, self.ids)

    @property
    def unknown(self) -> str | None:
        """The token of characters that are not in the vocabulary."""
        return next((t for t, type in zip(self.tokens, self.types, strict=True) if type == UNKNOWN), None)

    def specials(self, parse_special: bool) -> list[tuple[str, int]]:
        """Tokens that are found in a text before it is cut, and their types."""
        found = {USER_DEFINED, CONTROL, UNKNOWN} if parse_special else {USER_DEFINED}
        specials = [(t, type) for t, type in zip(self.tokens, self.types, strict=True) if type in found and t]
        if sum(len(t) for t, _ in specials) > MOST_SPECIALS:
            raise UnsupportedError(f"tokenizer.ggml.tokens: special tokens of more than {MOST_SPECIALS} characters")
        return specials

    def _byte_level(self, words: Words) -> Backend:
        backend = Backend(models.BPE(vocab=self.ids, merges=self.merges, ignore_merges=words.ignore_merges))
        if words.nfc:
            backend.normalizer = normalizers.NFC()
        splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in words.patterns]
        spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, spell])
        return backend

    def _sentence_piece(self) -> Backend:
        for token, type in zip(self.tokens, self.types, strict=True):
            if type == BYTE:
                _byte_value(token)
        backend = Backend(
            models.BPE(
                vocab=self.ids,
                merges=self.merges,
                unk_token=self.unknown,
                fuse_unk=True,
                byte_fallback=BYTE in self.types,
            )
        )
        spaces = normalizers.Replace(" ", SPACE)
        prefix = [normalizers.Prepend(SPACE)] if self.space_prefix else []
        backend.normalizer = normalizers.Sequence([*prefix, spaces])
        return backend

    def _ids(self) -> dict[str, int]:
        """Token -> id. Unused fillers may repeat, other tokens not."""
        ids: dict[str, int] = {}
        for id, token in enumerate(self.tokens):
            if token not in ids:
                ids[token] = id
            elif self.types[id] != UNUSED:
                raise FormatError(f"tokenizer.ggml.tokens: {quoted(token)} is both token {ids[token]} and token {id}")
        return ids

    def _words(self) -> Words:
        if self.pre not in WORDS:
            raise UnsupportedError(f"tokenizer.ggml.pre is {quoted(self.pre)}; known: {', '.join(WORDS)}")
        return WORDS[self.pre]

    def _id(self, name: str) -> int | None:
        id = self._key(name, int, None)
        if id is None:
            return None
        if not 0 <= id < len(self.tokens):
            raise FormatError(f"tokenizer.ggml.{name} is {id}, beyond the {len(self.tokens)} tokens")
        return int(id)

    def _stops(self) -> set[int]:
        """The ids of eos_token_ids, a list that some files have for end tokens beyond the three of their own keys."""
        ids = self.metadata.get("tokenizer.ggml.eos_token_ids", [])
        if not isinstance(ids, list | np.ndarray) or not all(isinstance(id, int | np.integer) for id in ids):
            raise FormatError("tokenizer.ggml.eos_token_ids is not a list of ids")
        if any(not 0 <= id < len(self.tokens) for id in ids):
            raise FormatError(f"tokenizer.ggml.eos_token_ids has an id beyond the {len(self.tokens)} tokens")
        return {int(id) for id in ids}

    def _numbers(self, name: str, default: Any, kinds: str) -> npt.NDArray[Any]:
        """An array with one finite number per token."""
        key = f"tokenizer.ggml.{name}"
        values = self.metadata.get(key, default)
        if values is None:
            raise FormatError(f"{key} is missing")
        try:
            array = np.asarray(values)
        except ValueError:
            array = np.empty(0)
        if array.shape != (len(self.tokens),) or array.dtype.kind not in kinds or not np.isfinite(array).all():
            raise FormatError(f"{key} is not a list of {len(self.tokens)} numbers, one for each token")
        return array

    def _key(self, name: str, type: type, default: Any) -> Any:
        value = self.metadata.get(f"tokenizer.ggml.{name}", default)
        wrong = not isinstance(value, type) or (type is int and isinstance(value, bool))
        if wrong and value is not default:
            raise FormatError(f"tokenizer.ggml.{name} is of type {value.__class__.__name__}; expected {type.__name__}")
        return value


def _byte_value(token: str) -> int:
    """<0x0A> -> 10."""
    found = BYTE_TOKEN.fullmatch(token)
    if found is None:
        raise FormatError(f"tokenizer.ggml.tokens: the byte token {quoted(token)} is not of the form <0x00>")
    return int(found[1], 16)
