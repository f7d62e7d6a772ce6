"""Tokenizers trained here, byte-level and SentencePiece, and texts to try them on."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import places
import sentencepiece
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from bitgen.convert.hf_tokenizer import PROBE
from bitgen.text.tokenizer import LLAMA3

CORPUS = places.TESTS / "text" / "test_tokenizer.py"
SPECIALS = ("<|begin|>", "<|end_of_text|>", "<|eot_id|>")
TEXTS = [
    "Hello, world!",
    "  leading and   multiple   spaces ",
    "tabs\tand\nnewlines\n\n\nthree\r\nx\ry",
    "12345 67 890 3.14159",
    "I'm you're we'll they'd IT'S",
    "naïve café Ångström e\u0301",
    "Привет 你好,世界! 日本語 한국어 हिन्दी مرحبا",
    "\U0001f642\U0001f680\U0001f468\u200d\U0001f469\u200d\U0001f467 emoji",
    "def f(x):\n    return x**2  # comment\n",
    "a<|eot_id|>b <|begin|> c",
    "<s> is not a token of every vocabulary </s>",
    " \u00a0\u2003\u200b\ufeff\x00\x7f",
    "▁ is a letter too",
    "",
    " ",
    "\n",
    PROBE,
]


def byte_level(
    pattern: str | tuple[str, ...] = LLAMA3, ignore_merges: bool = True, nfc: bool = False, size: int = 600
) -> Backend:
    """A small byte-level BPE trained on the text of a test, with specials at the end."""
    patterns = (pattern,) if isinstance(pattern, str) else pattern
    tokenizer = Backend(models.BPE(ignore_merges=ignore_merges))
    splits = [pre_tokenizers.Split(Regex(each), behavior="isolated") for each in patterns]
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, spell])
    tokenizer.decoder = decoders.ByteLevel()
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([CORPUS.read_text(encoding="utf-8")] * 2, trainer)
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIALS])
    return tokenizer


def saved(folder: Path, tokenizer: Backend, **settings: Any) -> Path:
    """A Hugging Face directory with this tokenizer."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": SPECIALS[0], "eos_token": {"content": SPECIALS[1]}, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def trained_pieces(folder: Path) -> sentencepiece.SentencePieceProcessor:
    """A model like LLaMA's: BPE, byte fallback, no normalisation, spaces kept. Its text is full of repetitions."""
    rng = random.Random(1)
    lines = [repetitive(rng, 30) for _ in range(1500)] + TEXTS * 3
    (folder / "text").write_text("\n".join(line.replace("\n", " ").replace("\0", " ") for line in lines))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "m"), vocab_size=420, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        split_by_whitespace=False, allow_whitespace_only_pieces=True, split_digits=True,
        character_coverage=0.99, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "m.model"))


def repetitive(rng: random.Random, words: int) -> str:
    """Text whose pieces can be cut in many ways."""
    stock = ["lol", "lolol", "aaaa", "aa", "aaaaaaa", "abab", "babab", "haha", "hello", "naïve", "日本語", "  ", "\n"]
    return "".join(rng.choice([*stock, " ", " "]) for _ in range(words))


def piece_keys(model: sentencepiece.SentencePieceProcessor) -> dict[str, Any]:
    """The keys a converter writes for a tokenizer.model."""
    ids = range(model.get_piece_size())
    types = [2 if model.is_unknown(i) else 3 if model.is_control(i) else 6 if model.is_byte(i) else 1 for i in ids]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [model.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": np.array([model.get_score(i) for i in ids], np.float32),
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.bos_token_id": model.bos_id(),
        "tokenizer.ggml.eos_token_id": model.eos_id(),
    }
