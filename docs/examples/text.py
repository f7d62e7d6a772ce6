"""Continue a text, piece by piece as it comes."""

from bitgen import Model

with Model.load() as model:  # the model that ships; or a file, or a name like "2B4T"
    generation = model.generate("Once upon a time", max_tokens=48, temperature=0.8, seed=1)
    for piece in generation:
        print(piece, end="", flush=True)
    print(f"\n[{generation.timing.tokens} tokens; ended by: {generation.timing.stopped}]")
