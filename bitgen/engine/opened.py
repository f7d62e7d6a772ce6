"""An opened model, as what is built on it sees it, and the types that its sessions keep and give."""

from __future__ import annotations

from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from bitgen.engine import arguments
from bitgen.engine.sampling import Sampling
from bitgen.headers import constants
from bitgen.spec import ModelShape
from bitgen.text.tokenizer import Tokenizer

Cache = Literal["f16", "f32", "int8"]
CACHES: dict[Cache, str] = {"f16": "BG_CACHE_F16", "f32": "BG_CACHE_F32", "int8": "BG_CACHE_I8"}

FloatArray = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]


def cache_type(cache: Cache) -> int:
    """The number of `enum bg_cache` for a type of keys and values."""
    arguments.one_of("cache", cache, CACHES)
    return constants("bitgen.h", "bg_cache")[CACHES[cache]]


def check_model(model: Any) -> None:
    """ArgumentTypeError where an argument is no opened model; EngineError where it is closed."""
    arguments.instance("model", model, OpenedModel, "a Model, as Model.load gives it")


@runtime_checkable
class OpenedModel(Protocol):
    """What sessions, and what is built on them, need of a model: `Model` is one."""

    @property
    def lib(self) -> Any:
        """The library that holds the model's kernels."""

    @property
    def handle(self) -> Any:
        """The library's `bg_model *`; EngineError where the model is closed."""

    @property
    def identity(self) -> bytes:
        """Of its packed file, [32]: others have others."""

    @property
    def shape(self) -> ModelShape:
        """Its dimensions."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer."""

    @property
    def threads(self) -> int:
        """Threads of a session, unless the caller says how many."""

    @property
    def load_s(self) -> float:
        """Seconds that it took to open."""

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen where nobody says."""
