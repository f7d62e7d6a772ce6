"""Continuous batching: requests come and go, and each step serves all that are there."""

from bitgen import Batch, Model

with Model.load() as model, Batch(model, 2, context=256) as batch:
    names = {batch.submit(prompt, max_tokens=16, temperature=0): prompt for prompt in ("One day", "The dog", "A bird")}
    while batch.busy:
        for request, _ in batch.step():
            if request.finished:
                print(names[request] + request.text)
