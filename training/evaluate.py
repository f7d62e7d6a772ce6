"""Held-out loss of a checkpoint (best.pt), of an exported folder by transformers in float32, or of a GGUF by bitgen.

A folder and a GGUF are evaluated story by story by independent code: equal losses verify packing, masking and export.
A GGUF is evaluated once for each type of KV cache.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from corpus import encode_stories, read_stories, split_held_out
from model import token_loss
from tokenizers import Tokenizer
from train import evaluate, load_model


@torch.no_grad()
def evaluate_folder(folder: Path, stories: list[np.ndarray]) -> float:
    """Mean loss per token, in nats, with transformers' BitNetForCausalLM."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    total, count = 0.0, 0
    for story in stories:
        ids = torch.from_numpy(story)
        logits = model(input_ids=ids[None, :-1]).logits
        total += token_loss(logits, ids[None, 1:], "sum").item()
        count += len(story) - 1
    return total / count


def evaluate_gguf(file: Path, stories: list[np.ndarray], cache: str) -> float:
    """Mean loss per token, in nats, with bitgen's engine and a KV cache of type `cache`."""
    from bitgen import Model

    model = Model.load(file)
    total, count = 0.0, 0
    for story in stories:
        logits = torch.from_numpy(model.logits(story[:-1].tolist(), cache=cache))
        total += token_loss(logits[None], torch.from_numpy(story)[None, 1:], "sum").item()
        count += len(story) - 1
    return total / count


def report(loss: float, what: str = "") -> None:
    print(f"{what}held-out loss {loss:.5f} nats per token, perplexity {math.exp(loss):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="best.pt, an exported folder, or a GGUF file")
    parser.add_argument("--real", type=Path, required=True, help="the real stories; every 25th is held out")
    parser.add_argument("--tokenizer", type=Path, required=True)
    args = parser.parse_args()
    _, held_out = split_held_out(read_stories(args.real))
    tokenizer = Tokenizer.from_file(str(args.tokenizer))
    if args.model.is_dir():
        report(evaluate_folder(args.model, encode_stories(tokenizer, held_out, context=512)))
    elif args.model.suffix == ".gguf":
        stories = encode_stories(tokenizer, held_out, context=512)
        for cache in ("f32", "f16", "int8"):
            report(evaluate_gguf(args.model, stories, cache), f"{cache} cache: ")
    else:
        model, _ = load_model(args.model)
        report(evaluate(model, encode_stories(tokenizer, held_out, model.shape.context)))


if __name__ == "__main__":
    main()
