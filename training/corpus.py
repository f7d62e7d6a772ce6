"""The corpus: story files -> stories -> token rows.

A story is BOS + tokens + EOS. Stories are packed whole into rows of fixed length. The model masks attention between
stories (`model.story_mask`) and RoPE is relative, so a packed story has the same logits as alone.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

SEPARATOR = "<|endoftext|>"
HELD_OUT_EVERY = 25
IGNORE = -100  # target of padding: no loss


def read_stories(path: Path) -> list[str]:
    """The stories of one file, stripped, in file order."""
    return [text for part in path.read_text(encoding="utf-8").split(SEPARATOR) if (text := part.strip())]


def split_held_out(stories: list[str]) -> tuple[list[str], list[str]]:
    """(training, held-out): every 25th story is held out."""
    train = [s for i, s in enumerate(stories) if i % HELD_OUT_EVERY]
    return train, stories[::HELD_OUT_EVERY]


def shares_passage(stories: list[str], others: list[str], words: int) -> list[bool]:
    """For each story: whether it repeats `words` consecutive words of one of `others`."""

    def runs(text: str) -> set[tuple[str, ...]]:
        split = text.split()
        return {tuple(split[i : i + words]) for i in range(len(split) - words + 1)}

    known = set().union(*map(runs, others))
    return [not known.isdisjoint(runs(story)) for story in stories]


def encode_stories(tokenizer: Tokenizer, stories: list[str], context: int) -> list[np.ndarray]:
    """Token ids int64 of each story, BOS and EOS included, cut to context + 1 (the last is only a target)."""
    bos, eos = tokenizer.token_to_id("<|begin_of_text|>"), tokenizer.token_to_id("<|end_of_text|>")
    encodings = tokenizer.encode_batch(stories, add_special_tokens=False)
    return [np.array([bos, *e.ids, eos], dtype=np.int64)[: context + 1] for e in encodings]


def pack(stories: list[np.ndarray], length: int) -> list[list[np.ndarray]]:
    """Best-fit packing, longest story first: each row is a list of stories using at most `length` positions.

    A story of n tokens uses n - 1 positions: its EOS is only ever a target.
    """
    rows: list[list[np.ndarray]] = []
    room: list[int] = []
    for story in sorted(stories, key=len, reverse=True):
        need = len(story) - 1
        fits = [r for r, free in enumerate(room) if free >= need]
        if fits:
            best = min(fits, key=room.__getitem__)
            rows[best].append(story)
            room[best] -= need
        else:
            rows.append([story])
            room.append(length - need)
    return rows


def collate(rows: list[list[np.ndarray]], length: int) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens, targets, story), each [rows, length]; story numbers the stories of a row, -1 is padding."""
    tokens = np.zeros((len(rows), length), dtype=np.int64)
    targets = np.full((len(rows), length), IGNORE, dtype=np.int64)
    story = np.full((len(rows), length), -1, dtype=np.int64)
    for r, row in enumerate(rows):
        at = 0
        for i, ids in enumerate(row):
            end = at + len(ids) - 1
            tokens[r, at:end], targets[r, at:end], story[r, at:end] = ids[:-1], ids[1:], i
            at = end
    return torch.from_numpy(tokens), torch.from_numpy(targets), torch.from_numpy(story)


def endless_rows(stories: list[np.ndarray], length: int, seed: int) -> Iterator[list[np.ndarray]]:
    """An endless stream of rows: every pass over the stories is shuffled and packed again, in random order."""
    rng = np.random.default_rng(seed)
    window = 512  # stories packed at a time: enough to pack tightly, few enough for quadratic time
    while True:
        order = rng.permutation(len(stories))
        rows = []
        for at in range(0, len(order), window):
            rows += pack([stories[i] for i in order[at : at + window]], length)
        yield from (rows[i] for i in rng.permutation(len(rows)))
