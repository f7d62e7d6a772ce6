"""Checkpoints as trainers leave them -> the GGUF files that engines run."""

from bitgen.convert.hf import HfCheckpoint
from bitgen.convert.source import convert, open_source

__all__ = ["HfCheckpoint", "convert", "open_source"]
