"""Many prompts at once, each with the text that it would have alone."""

from bitgen import Model

prompts = ["Once upon a time", "One day, a little boy", "The cat"]
with Model.load() as model:
    together = model.generate_many(prompts, max_tokens=24, temperature=0, batch=3)
    alone = ["".join(model.generate(prompt, max_tokens=24, temperature=0)) for prompt in prompts]
    for prompt, text in zip(prompts, together, strict=True):
        print(prompt + text)
    print("as alone:", together == alone)
