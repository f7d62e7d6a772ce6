"""A long prompt computed once and kept in a file: the same text the next time, sooner."""

import tempfile
from pathlib import Path

from bitgen import Model

PROMPT = "Once upon a time there was a little girl who had a red ball. "

with Model.load() as model, tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "prompt.cache"
    ids = model.tokenizer.encode(PROMPT)
    with model.session() as session:
        session.append(ids)
        session.save(file)
    with model.session() as session:
        held = session.restore(file)
        print("positions restored:", held, "of", len(ids))
        continued = "".join(model.generate(PROMPT + "One day", max_tokens=16, temperature=0, session=session))
    print("the same text:", continued == "".join(model.generate(PROMPT + "One day", max_tokens=16, temperature=0)))
