"""Held-out loss of a checkpoint (best.pt), or of an exported folder by transformers in float32.

A folder is evaluated story by story by independent code: equal numbers check packing, masking and export.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="best.pt, or an exported folder")
    parser.add_argument("--real", type=Path, required=True, help="the real stories; every 25th is held out")
    parser.add_argument("--tokenizer", type=Path, required=True)
    args = parser.parse_args()
    _, held_out = split_held_out(read_stories(args.real))
    tokenizer = Tokenizer.from_file(str(args.tokenizer))
    if args.model.is_dir():
        loss = evaluate_folder(args.model, encode_stories(tokenizer, held_out, context=512))
    else:
        model, _ = load_model(args.model)
        loss = evaluate(model, encode_stories(tokenizer, held_out, model.shape.context))
    print(f"held-out loss {loss:.5f} nats per token, perplexity {math.exp(loss):.3f}")


if __name__ == "__main__":
    main()
