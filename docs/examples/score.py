"""Log probabilities of a text, and which of two continuations a model finds likelier."""

from bitgen import Model

with Model.load() as model:
    for ending in (" ran to the park.", " evaporated the tax."):
        score = model.score(ending, context="The little girl")
        print(f"{sum(score.logprobs):8.2f}  The little girl{ending}")
