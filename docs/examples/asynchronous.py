"""Two texts at once under asyncio."""

import asyncio

from bitgen import Model


async def tell(model: Model, prompt: str) -> str:
    """The whole text."""
    pieces = [piece async for piece in model.agenerate(prompt, max_tokens=16, temperature=0)]
    return prompt + "".join(pieces)


async def main() -> None:
    """Both stories."""
    with Model.load() as model:
        for text in await asyncio.gather(tell(model, "Once"), tell(model, "One day")):
            print(text)


asyncio.run(main())
