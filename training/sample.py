"""Write a story with a checkpoint, in plain PyTorch without a cache: for looking at a run, not for speed."""

import argparse
from pathlib import Path

import torch
from model import BitNet, story_mask
from tokenizers import Tokenizer
from train import load_model


@torch.no_grad()
def generate(
    model: BitNet, tokenizer: Tokenizer, prompt: str, temperature: float, top_p: float, limit: int, seed: int
) -> str:
    """The prompt and its continuation, to the end of the story or `limit` new tokens; temperature 0 is greedy."""
    generator = torch.Generator().manual_seed(seed)
    ids = tokenizer.encode(prompt).ids  # with BOS
    stops = {tokenizer.token_to_id("<|end_of_text|>"), tokenizer.token_to_id("<|eot_id|>")}
    for _ in range(min(limit, model.shape.context - len(ids))):
        tokens = torch.tensor([ids])
        logits = model(tokens, story_mask(torch.zeros_like(tokens)))[0, -1]
        if temperature == 0:
            following = int(logits.argmax())
        else:
            p, order = (logits / temperature).softmax(-1).sort(descending=True)
            p[p.cumsum(-1) - p >= top_p] = 0  # keeps the token that crosses top_p
            following = int(order[torch.multinomial(p, 1, generator=generator)])
        if following in stops:
            break
        ids.append(following)
    return tokenizer.decode(ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--prompt", default="Once upon a time")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--top-p", type=float, default=0.9)
    parser.add_argument("--limit", type=int, default=400, help="new tokens at most")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one story per seed")
    args = parser.parse_args()
    model, _ = load_model(args.checkpoint)
    tokenizer = Tokenizer.from_file(str(args.tokenizer))
    for seed in args.seeds:
        story = generate(model, tokenizer, args.prompt, args.temperature, args.top_p, args.limit, seed)
        print(story, end="\n\n")


if __name__ == "__main__":
    main()
