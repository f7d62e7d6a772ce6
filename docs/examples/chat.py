"""A conversation that keeps what it computed from turn to turn."""

from bitgen import Chat, Model

with Model.load() as model:
    # The model that ships only continues stories; a model that answers brings its own template.
    chat = Chat(model, system="You tell stories.", template="chatml")
    for message in ("Tell me of a cat.", "And of a dog?"):
        print("you:", message)
        print("it: ", "".join(chat.say(message, max_tokens=24)))
    chat.close()
