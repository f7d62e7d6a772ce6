"""Stop strings: the text ends before the first of them."""

from bitgen import Model

with Model.load() as model:
    generation = model.generate("Once upon a time", max_tokens=100, stop=["."], temperature=0)
    print("".join(generation))
    print("ended by:", generation.timing.stopped)
