"""bitgen: a kernel compiler and autotuner for ternary (BitNet b1.58) language models on CPUs.

    from bitgen import Model
    m = Model.load()                       # the model that ships; or a GGUF path, or a name like hf:owner/repo
    for piece in m.generate("Once upon a time", max_tokens=64, temperature=0.8, seed=1):
        print(piece, end="")
    m.logits([1, 2, 3])                    # float32 [n, vocab]

`bitgen.api` has the verbs of the command line: generate, chat, tokenizer, embed, perplexity, verify, bench, doctor,
tune, estimate, build, standalone, synth, convert, info, kernels, gen, kernel_cost, pull, models, removal, prune_cache.
"""

from bitgen.engine.asynchronous import AsyncGeneration
from bitgen.engine.batch import Batch
from bitgen.engine.chat import Chat
from bitgen.engine.generate import Generation
from bitgen.engine.model import Model
from bitgen.engine.sampling import Sampling
from bitgen.engine.session import Choice, Session, forward_batch, next_batch
from bitgen.errors import (
    ArgumentError,
    BitgenError,
    CompileError,
    EngineError,
    FormatError,
    RemoteError,
    UnsupportedError,
)

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "AsyncGeneration",
    "Batch",
    "BitgenError",
    "Chat",
    "Choice",
    "CompileError",
    "EngineError",
    "FormatError",
    "Generation",
    "Model",
    "RemoteError",
    "Sampling",
    "Session",
    "UnsupportedError",
    "forward_batch",
    "next_batch",
]
