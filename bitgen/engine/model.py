"""The model as its users see it: opened from a file, then asked for sessions, texts, vectors and scores."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from bitgen import uses
from bitgen.checkpoints.checkpoint import Checkpoint
from bitgen.compile import binding, checksum, library, pack
from bitgen.compile.clang import Artefact, BuildOptions
from bitgen.convert.local import located
from bitgen.data import WAITING, once
from bitgen.engine import arguments
from bitgen.engine.asynchronous import AsyncGeneration
from bitgen.engine.batch import Batch
from bitgen.engine.chat import ChatTemplate, Message, messages_of, template_of
from bitgen.engine.embed import embed, known_pooling, pooling_of
from bitgen.engine.generate import Continuation, Generation
from bitgen.engine.opened import Cache
from bitgen.engine.ownership import Uncopied
from bitgen.engine.sampling import Sampling, from_metadata
from bitgen.engine.score import Score, score
from bitgen.engine.session import Session
from bitgen.engine.stops import Stop
from bitgen.errors import ArgumentError, EngineError
from bitgen.gguf.doubts import warning as doubt
from bitgen.gguf.metadata import HIDDEN_ACTIVATIONS
from bitgen.gguf.reader import I2sLayout, read_gguf
from bitgen.kernels import plan as plans
from bitgen.kernels.formats import FORMATS
from bitgen.progress import Watch, watched
from bitgen.spec import HEAD_ROLE, Listener, ModelShape
from bitgen.targets import default_threads
from bitgen.text.chat_templates import carried
from bitgen.text.tokenizer import Tokenizer


def _give_back_memory() -> None:
    """Return free memory to the system: glibc keeps some 30 MB after building a tokenizer of 280,000 merges."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim:
        trim(0)


def _pack_once(packed: Path, checkpoint: Checkpoint, plan: plans.ModelPlan, head: pack.Head, report: Listener) -> bool:
    """See to it that the packed model is there and sound, and return whether it was made now."""

    def write() -> None:
        pack.write(packed, checkpoint, plan, head, lambda done, total: report("packing the weights", done, total))

    return once(packed, partial(checksum.is_sound, packed), write, partial(report, WAITING, 0, 0))


def _opened(open_packed: Callable[[], Model], packed: Path, pack_once: Callable[[], bool]) -> Model:
    """The opened model; where its packed file has damage that no sample shows, it is packed anew."""
    try:
        return open_packed()
    except EngineError:
        if checksum.is_sound(packed, whole=True):
            raise
        packed.unlink(missing_ok=True)
    pack_once()
    return open_packed()


class Model(Uncopied):
    """A model ready to run: its kernels compiled for this CPU, its weights packed and memory-mapped.

    `sampling` holds how tokens are chosen where a call does not say: the file's own defaults, else those of Sampling.
    Close it, or use it as a context manager; what is left open is closed when nothing refers to it.
    It does not change once it is loaded. Several threads may use one at once, each with sessions of its own, and
    generate, logits, embed and score open theirs; a Session, a Generation, a Batch and a Chat are for one thread at a
    time. Threads and processes may load models at once: what is not cached yet is made by one, and the others wait.
    """

    def __init__(
        self, path: Path, shape: ModelShape, tokenizer: Tokenizer, plan: plans.ModelPlan, artefact: Artefact,
        packed: Path, head: pack.Head, threads: int | None,
    ) -> None:  # fmt: skip
        self.path, self.shape, self.tokenizer = path, shape, tokenizer
        self.plan, self.artefact, self.packed = plan, artefact, packed
        usable = default_threads()
        self.threads = min(plan.threads or usable, usable) if threads is None else threads
        self.head, self.load_s, self.pooling = head, 0.0, "last"
        self.chat_templates: dict[str, str] = {}  # by name, as the file carries them
        self.sampling = Sampling()
        self.warning: str | None = None  # sentences about what the file seems to have wrong
        self._templates: dict[str, ChatTemplate] = {}  # compiled, by their text
        self.lib = binding.load(artefact.path)
        out = binding.ffi().new("bg_model **")
        index = library.isa_index(self.lib, plan.isa)
        binding.check(self.lib, self.lib.bg_open(os.fsencode(packed), index, out), f"cannot open {packed}")
        self.identity = checksum.identity(packed)
        self._handle = binding.ffi().gc(out[0], self.lib.bg_close)

    @classmethod
    @watched
    def load(
        cls,
        path: str | Path | None = None,
        *,
        threads: int | None = None,
        isa: str | None = None,
        head: pack.Head = "certified",
        i2s_layout: I2sLayout = "x86",
        activation: str | None = None,
        tl_tiles: str = "",
        download: bool = False,
        progress: Watch = None,
    ) -> Model:
        """Open a model (None: the one that ships), building and packing what is not cached yet.

        path: a GGUF file, a checkpoint's folder, a preset like "2B4T", or "hf:owner/repo[@revision][:TAG]"
            (convert/names.py). A checkpoint is converted once, into the cache.
        download: fetch a model on the Hugging Face Hub that is not here; otherwise that is a BitgenError.
        head: "certified" chooses tokens from int8 codes of the head, of most rows only six bits, and exact rows for
            those that can win: the same tokens as "f16", at 3/8 of the bytes per token. "f16" saves the codes' room on
            disk; rows that float16 does not hold exactly are bfloat16 or float32. "int8" has codes alone: logits within
            their rounding. A head that is ternary with scales of groups is its own code: "certified" keeps embedding
            and head as they are, with the same tokens and logits; "f16" widens them; "int8" is refused.
        i2s_layout, activation, tl_tiles: what the file does not say, or says wrongly; as in read_gguf.
        progress: of compiling and packing: True draws a bar on stderr; or a function of (stage, done, total), total 0
            where it is not known; or tqdm.
        """
        started = time.perf_counter()
        if path is not None:
            arguments.path("path", path)
        arguments.instance("download", download, bool, "True or False")
        arguments.one_of("head", head, get_args(pack.Head))
        arguments.one_of("i2s_layout", i2s_layout, get_args(I2sLayout))
        arguments.text("tl_tiles", tl_tiles)
        if activation is not None:
            arguments.one_of("activation", activation, HIDDEN_ACTIVATIONS)
        threads = None if threads is None else arguments.checked("threads", threads)
        level = None if isa is None else arguments.text("isa", isa)
        report: Listener = progress
        report("reading the model", 0, 0)
        source = located(path, download, report)
        checkpoint = read_gguf(source, i2s_layout, activation, tl_tiles)
        pack.check_head(checkpoint.shape, head)
        chat_templates = carried(checkpoint.metadata)
        plan = plans.of_model(checkpoint.shape, library.host_isa(report) if level is None else level)
        artefact = library.for_model(checkpoint.shape, [plan], BuildOptions(listener=report))
        packed = pack.path_for(checkpoint.files, plan, head, f"{checkpoint.shape} {checkpoint.reading}")
        pack_once = partial(_pack_once, packed, checkpoint, plan, head, report)
        with uses.noted(packed, checkpoint.files, artefact.folder):
            made = pack_once()
        report("reading the vocabulary", 0, 0)
        tokenizer = Tokenizer.from_metadata(checkpoint.metadata)
        _give_back_memory()
        open_packed = partial(cls, source, checkpoint.shape, tokenizer, plan, artefact, packed, head, threads)
        model = _opened(open_packed, packed, pack_once)
        model.sampling, passed_over = from_metadata(checkpoint.metadata)
        model.warning = "; ".join(filter(None, (doubt(checkpoint) if made else None, passed_over))) or None
        model.chat_templates = chat_templates
        model.pooling = pooling_of(checkpoint.metadata)
        model.load_s = time.perf_counter() - started
        return model

    @property
    def handle(self) -> Any:
        """The library's `bg_model *`; EngineError where the model is closed."""
        handle = self._handle
        if handle is None:
            raise EngineError("this model is closed")
        return handle

    def close(self) -> None:
        """Free the weights as soon as the model's sessions are closed; further calls, theirs too, are errors."""
        self._handle = None

    @property
    def chat_template(self) -> str | None:
        """The template for conversations, if the file carries one."""
        return self.chat_templates.get("default")

    @property
    def about(self) -> str:
        """One line: the model, the ISA it runs on, the head, the threads."""
        threads = f"{self.threads} thread{'s' * (self.threads != 1)}"
        head = f"{self.head} ternary" if self.has_ternary_head else self.head
        return f"{self.shape.name} on {self.plan.isa}, {head} head, {threads}"

    @property
    def has_ternary_head(self) -> bool:
        """Whether the head is multiplied as ternary codes and scales of groups."""
        return pack.is_ternary(self.shape, self.head)

    @property
    def ternary_weights(self) -> int:
        """Ternary weights of the whole model."""
        return self.shape.ternary_weights

    @property
    def weight_bytes(self) -> int:
        """Packed ternary bytes that one token reads."""
        shape, plan = self.shape, self.plan.matrices
        return sum(
            shape.layers_with(r) * FORMATS[plan[r].layout.format].geometry(gemm, plan[r].layout).weight_bytes
            for r, gemm in shape.matrices.items()
        )

    @property
    def head_bytes(self) -> int:
        """Bytes of the LM head read to choose up to sixteen tokens (certified: besides the few rows that may win)."""
        if not self.has_ternary_head:
            return self.shape.vocab * pack.head_row_bytes(self.packed, self.head)
        layout = self.plan.matrices[HEAD_ROLE].layout
        packed = FORMATS[layout.format].geometry(self.shape.all_matrices[HEAD_ROLE], layout)
        return packed.weight_bytes + 4 * self.shape.vocab  # with a norm for each row

    def session(self, threads: int | None = None, context: int | None = None, cache: Cache = "f16") -> Session:
        """A new conversation of at most `context` tokens (default: all the model was made for).

        cache: the type that keys and values are kept in: "f16"; "int8", half the bytes, with a scale for each position
        and head; or "f32", for comparisons with models that do not round them.
        """
        return Session(self, threads, context, cache)

    def logits(self, tokens: Sequence[int], *, cache: Cache = "f16") -> npt.NDArray[np.float32]:
        """Logits float32 [n, vocab] after each of n tokens, computed from an empty context."""
        ids = arguments.ids("tokens", tokens, self.shape.vocab)
        if len(ids) > self.shape.context:
            raise ArgumentError(f"tokens has {len(ids)} ids, the model's context holds {self.shape.context}")
        with self.session(context=len(ids), cache=cache) as session:
            return session.forward(ids.tolist(), every=True)

    def embed(self, texts: Sequence[str], *, pooling: str | None = None) -> npt.NDArray[np.float32]:
        """Vectors float32 [len(texts), hidden] of length one, whose dot products say how alike texts are.

        pooling: "last" (the last token's state), "mean" (of all tokens) or "cls" (the first token's); None: what
            the file says, or else "last". Several texts go through the layers in one pass, with the same vectors as
            each alone.
        """
        return embed(self, texts, self.pooling if pooling is None else known_pooling(pooling))

    def generate(
        self,
        prompt: str | Sequence[int],
        max_tokens: int = 256,
        *,
        stop: Stop = True,
        sampling: Sampling | None = None,
        cache: Cache = "f16",
        prompt_lookup: int = 0,
        logprobs: int | None = None,
        session: Session | None = None,
        **options: Any,
    ) -> Generation:
        """Continue a prompt, a text or its token ids: an iterator over pieces of text as they come.

        Sampling parameters may be given one by one (temperature=0.8, seed=1), the rest being those of
        `Model.sampling`, or as `sampling`, which is taken as it is.
        stop: True: end at the model's stop tokens; False: do not; a string or a list of strings: end there too, before
            the first of them that the text spells out, wherever its tokens begin, or at a control token that is spelt
            so. Text that may begin one is held back until that is decided.
        It also ends after `max_tokens` or where the context is full: `timing.stopped` says which.
        cache: as in `session`.
        prompt_lookup: tokens to propose at most in one pass, those that followed the last few before
            (engine/prompt_lookup.py). The text is the same; it comes faster where it repeats itself or the prompt.
        logprobs: keep each token's log probability and that many likeliest ones (`Generation.choices`).
        session: work in this session, instead of a new one. What its cache holds of the prompt is not computed again;
            what else it holds is forgotten. Afterwards it holds the prompt and the text, for a prompt that goes on.
        """
        chosen = self.sampling.given(sampling, options)
        return Generation(self, prompt, max_tokens, stop, chosen, cache, prompt_lookup, logprobs, session)

    def agenerate(
        self,
        prompt: str | Sequence[int],
        max_tokens: int = 256,
        *,
        stop: Stop = True,
        sampling: Sampling | None = None,
        cache: Cache = "f16",
        prompt_lookup: int = 0,
        logprobs: int | None = None,
        session: Session | None = None,
        **options: Any,
    ) -> AsyncGeneration:
        """`generate` for asyncio: `async for piece in model.agenerate(...)`. `AsyncGeneration(model.chat(...))` is the
        same of an answer."""
        return AsyncGeneration(
            self.generate(
                prompt, max_tokens, stop=stop, sampling=sampling, cache=cache, prompt_lookup=prompt_lookup,
                logprobs=logprobs, session=session, **options,
            )
        )  # fmt: skip

    def chat(
        self,
        messages: Sequence[Message],
        max_tokens: int = 1024,
        *,
        template: str | None = None,
        stop: Stop = True,
        sampling: Sampling | None = None,
        cache: Cache = "f16",
        prompt_lookup: int = 0,
        logprobs: int | None = None,
        session: Session | None = None,
        **options: Any,
    ) -> Generation:
        """Answer a conversation: an iterator over pieces of the answer, as of `generate`, whose options these are.

        messages: [{"role": "user", "content": "Hello"}, ...]; roles: system, user, assistant. What they say stays
            text, whatever control tokens it spells. One that is too long for the context is an error.
        template: a name of text/chat_templates.py or in the model's file, or a Jinja file; None: the model's own.
        `Chat` keeps a dialogue and its cache, and forgets the oldest turns where the context is full.
        """
        asked = messages_of("messages", messages)
        ids = template_of(self, template, self._templates).encode(asked)
        return self.generate(
            ids, max_tokens, stop=stop, sampling=sampling, cache=cache, prompt_lookup=prompt_lookup,
            logprobs=logprobs, session=session, **options,
        )  # fmt: skip

    def score(self, text: str, context: str = "", *, cache: Cache = "f16") -> Score:
        """Log probabilities of a text's tokens, given the context before it; see score.score."""
        return score(self, text, context, cache)

    def generate_many(
        self,
        prompts: Sequence[str | Sequence[int]],
        max_tokens: int = 256,
        *,
        batch: int = 16,
        stop: Stop = True,
        sampling: Sampling | None = None,
        cache: Cache = "f16",
        **options: Any,
    ) -> list[str]:
        """Continue many prompts, up to `batch` of them at once: the texts that `generate` gives one by one.

        As one ends the next takes its place. Every text is drawn with the same seed.
        """
        chosen = self.sampling.given(sampling, options)
        places = arguments.checked("batch", batch)
        listed = arguments.items("prompts", prompts, "prompts")
        given = [arguments.prompt(f"prompts[{i}]", prompt) for i, prompt in enumerate(listed)]
        texts = [Continuation(self, prompt, max_tokens, stop, chosen) for prompt in given]
        longest = max((text.context for text in texts), default=1)
        with Batch(self, min(places, len(texts) or 1), context=longest, cache=cache) as running:
            requests = [running.submit(text.prompt_ids, max_tokens, stop=stop, sampling=chosen) for text in texts]
            while running.busy:
                running.step()
        for request in requests:
            if request.error:
                raise request.error
        return [request.text for request in requests]

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Model {self.about}{', closed' if self._handle is None else ''}>"
