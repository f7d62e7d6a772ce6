"""Train a ternary model on story files; resumes from the run folder when it holds an unfinished run.

The run folder receives last.pt (everything needed to resume), best.pt (the weights with the least held-out
loss) and log.jsonl.
"""

import argparse
import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from corpus import collate, encode_stories, endless_rows, pack, read_stories, shares_passage, split_held_out
from model import BitNet, Shape, story_mask, token_loss
from muon import Muon
from tokenizers import Tokenizer
from torch import Tensor

LEAK_WORDS = 16  # a training story repeating this many consecutive words of a held-out one is dropped
SEED = 1


@dataclass(frozen=True)
class Stage:
    """A part of the run: learning rates go linearly from lr[0] to lr[1], as factors of their peaks."""

    name: str
    until: float  # end, as a fraction of the whole run
    lr: tuple[float, float]
    weight_decay: float
    real_fraction: float  # of rows from the real stories, the others from the sampled ones
    length: int  # positions per row


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters; learning rates are peaks, which the stages scale."""

    optimiser: str  # of the linears: "muon" or "adamw"
    matrix_lr: float
    other_lr: float = 3e-3  # AdamW on the embedding and the norms
    betas: tuple[float, float] = (0.9, 0.95)
    batch_tokens: int = 4096
    clip: float = 1.0  # maximum of the gradient's norm
    # BitNet b1.58's two stages: a high rate with weight decay, then a lower one falling to zero, without.
    stages: tuple[Stage, ...] = (
        Stage("warm-up", 0.02, (0.02, 1.0), 0.1, 0.14, 384),
        Stage("high", 0.65, (1.0, 0.53), 0.1, 0.14, 384),  # 0.14: their fraction of the corpus
        Stage("low", 1.0, (0.33, 0.0), 0.0, 0.4, 512),
    )

    def at(self, progress: float) -> tuple[int, float]:
        """(index of the stage, factor of the learning rates) at a fraction of the run in [0, 1]."""
        index = next((i for i, s in enumerate(self.stages) if progress < s.until), len(self.stages) - 1)
        stage, start = self.stages[index], self.stages[index - 1].until if index else 0.0
        inside = min(1.0, (progress - start) / (stage.until - start))
        return index, stage.lr[0] + (stage.lr[1] - stage.lr[0]) * inside


RECIPES = {
    "muon": Recipe("muon", matrix_lr=0.02),
    "adamw": Recipe("adamw", matrix_lr=3e-3),
}


def make_optimisers(model: BitNet, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """One optimiser for the matrices, one for the rest; each group holds its peak rate and whether it decays."""
    matrices = model.matrices()
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    if recipe.optimiser == "muon":
        first: torch.optim.Optimizer = Muon(matrices, lr=recipe.matrix_lr, weight_decay=0.0)
    else:
        first = torch.optim.AdamW(matrices, lr=recipe.matrix_lr, betas=recipe.betas)
    second = torch.optim.AdamW(others, lr=recipe.other_lr, betas=recipe.betas)
    for optimiser, decays in ((first, True), (second, False)):
        for group in optimiser.param_groups:
            group.update(peak=group["lr"], decays=decays)
    return [first, second]


class Rows:
    """Batches of a stage: rows of real and of sampled stories, mixed by its `real_fraction`."""

    def __init__(self, real: list[np.ndarray], sampled: list[np.ndarray], recipe: Recipe, index: int, done: int):
        """Skips the first `done` batches of stage `index`, which an earlier run has used."""
        self.stage = recipe.stages[index]
        self.count = recipe.batch_tokens // self.stage.length
        self.rng = np.random.default_rng((SEED, index))
        cut = self.stage.length + 1
        self.real = endless_rows([s[:cut] for s in real], self.stage.length, SEED + 2 * index)
        self.sampled = endless_rows([s[:cut] for s in sampled], self.stage.length, SEED + 2 * index + 1)
        self.done = 0
        while self.done < done:
            self._draw()

    def _draw(self) -> list[list[np.ndarray]]:
        self.done += 1
        picks = self.rng.random(self.count) < self.stage.real_fraction
        return [next(self.real if pick else self.sampled) for pick in picks]

    def batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """(tokens, targets, story), each [rows, length]."""
        return collate(self._draw(), self.stage.length)


@torch.no_grad()
def evaluate(model: BitNet, stories: list[np.ndarray]) -> float:
    """Mean loss per token, in nats, over whole stories (EOS included)."""
    rows = pack(stories, model.shape.context)
    total, count = 0.0, 0
    for at in range(0, len(rows), 4):
        tokens, targets, story = collate(rows[at : at + 4], model.shape.context)
        total += token_loss(model(tokens, story_mask(story)), targets, "sum").item()
        count += int((targets >= 0).sum())
    return total / count


def load_model(path: Path) -> tuple[BitNet, dict]:
    """The model of a checkpoint written by `train`, and the checkpoint."""
    checkpoint = torch.load(path, weights_only=True)
    model = BitNet(Shape(**checkpoint["shape"]))
    model.load_state_dict(checkpoint["model"])
    return model, checkpoint


def save(path: Path, **content: object) -> None:
    """Write a checkpoint by atomic rename."""
    torch.save(content, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").rename(path)


def train(
    run: Path,
    real: list[np.ndarray],
    sampled: list[np.ndarray],
    held_out: list[np.ndarray],
    shape: Shape,
    recipe: Recipe,
    steps: int | None,
    minutes: float | None,
    eval_every: int,
    compiled: bool,
) -> None:
    """Train for `steps`, or until `minutes` of training have passed; the schedule spans whichever it is."""
    run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    model = BitNet(shape)
    optimisers = make_optimisers(model, recipe)
    step, elapsed, seen, index, used, best = 0, 0.0, 0, 0, 0, float("inf")
    if (last := run / "last.pt").exists():
        model, state = load_model(last)
        optimisers = make_optimisers(model, recipe)
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        step, elapsed, seen, index, used, best = (
            state[k] for k in ("step", "elapsed", "seen", "index", "used", "best")
        )
        print(f"resuming at step {step}, {elapsed / 60:.1f} minutes in", flush=True)

    def loss_of(tokens: Tensor, targets: Tensor, story: Tensor) -> Tensor:
        return token_loss(model(tokens, story_mask(story)), targets)

    step_loss = torch.compile(loss_of) if compiled else loss_of
    rows = Rows(real, sampled, recipe, index, used)
    facts = {"shape": dataclasses.asdict(shape), "recipe": dataclasses.asdict(recipe)}
    recent: list[float] = []
    first = step + 1
    while True:
        clock = time.monotonic()
        progress = step / steps if steps else elapsed / (60 * minutes)
        finished = progress >= 1
        if step >= first and (finished or step % eval_every == 0):
            loss = evaluate(model, held_out)
            record = {
                "step": step,
                "tokens": seen,
                "minutes": round(elapsed / 60, 2),
                "stage": recipe.stages[index].name,
                "train": round(float(np.mean(recent)), 4),
                "held_out": round(loss, 4),
                "density": round(density(model), 3),
            }
            print(json.dumps(record), flush=True)
            with (run / "log.jsonl").open("a") as log:
                log.write(json.dumps(record) + "\n")
            if loss < best:
                best = loss
                save(run / "best.pt", model=model.state_dict(), **facts, **record)
            moments = [o.state_dict() for o in optimisers]
            state = {"step": step, "elapsed": elapsed, "seen": seen, "best": best}
            state |= {"index": index, "used": rows.done}
            save(last, model=model.state_dict(), optimisers=moments, **facts, **state)
        if finished:
            return

        now, rate = recipe.at(progress)
        if now != index:
            index, rows = now, Rows(real, sampled, recipe, now, 0)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * rate
                group["weight_decay"] = recipe.stages[index].weight_decay if group["decays"] else 0.0
        tokens, targets, story = rows.batch()
        loss = step_loss(tokens, targets, story)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        step, seen = step + 1, seen + int((targets >= 0).sum())
        recent = [*recent[-49:], loss.item()]
        spent = time.monotonic() - clock
        elapsed += spent if rows.done > 1 and step > first else 0.0  # compiling is not training
        if step % 10 == 0:
            speed = tokens.numel() / spent
            print(f"{step:6d} {recent[-1]:.3f} rate {rate:.3f} {speed:.0f} tokens/s", flush=True)


@torch.no_grad()
def density(model: BitNet) -> float:
    """Fraction of ternary weights that are not zero."""
    weights = [w / w.abs().mean() for w in model.matrices()]
    return (sum((w.abs() > 0.5).sum() for w in weights) / sum(w.numel() for w in weights)).item()


def load_corpus(tokenizer: Tokenizer, real: Path, sampled: Path, context: int) -> tuple[list, list, list]:
    """(real, sampled, held-out) stories as token ids, without those that repeat a passage of a held-out one."""
    rest, held_out = split_held_out(read_stories(real))
    groups = []
    for stories in (rest, read_stories(sampled)):
        leaks = shares_passage(stories, held_out, LEAK_WORDS)
        groups.append([s for s, leak in zip(stories, leaks, strict=True) if not leak])
    return tuple(encode_stories(tokenizer, stories, context) for stories in (*groups, held_out))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--real", type=Path, required=True, help="the real stories; every 25th is held out")
    parser.add_argument("--sampled", type=Path, required=True, help="the sampled stories")
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json")
    parser.add_argument("--recipe", choices=RECIPES, default="muon")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--steps", type=int, help="length of the run; reproducible")
    length.add_argument("--minutes", type=float, help="length of the run by the clock")
    parser.add_argument("--full-precision", action="store_true", help="the unquantised twin")
    parser.add_argument("--eval-every", type=int, default=100, help="steps between evaluations")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-compile", action="store_true", help="slower, starts at once")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    shape = Shape(ternary=not args.full_precision)
    real, sampled, held_out = load_corpus(
        Tokenizer.from_file(str(args.tokenizer)), args.real, args.sampled, shape.context
    )
    for name, stories in (("real", real), ("sampled", sampled), ("held out", held_out)):
        print(f"{name}: {len(stories)} stories, {sum(len(s) - 1 for s in stories)} tokens", flush=True)
    train(
        args.run, real, sampled, held_out, shape, RECIPES[args.recipe], args.steps, args.minutes,
        args.eval_every, not args.no_compile,
    )  # fmt: skip


if __name__ == "__main__":
    main()
