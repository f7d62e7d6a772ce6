"""An answer to a list of messages, as a server gets them."""

from bitgen import Model

messages = [
    {"role": "system", "content": "You tell stories."},
    {"role": "user", "content": "Tell me of a cat."},
]
with Model.load() as model:
    answer = model.chat(messages, max_tokens=24, template="chatml", temperature=0)
    print("".join(answer))
    print("prompt tokens:", answer.timing.prompt_tokens)
