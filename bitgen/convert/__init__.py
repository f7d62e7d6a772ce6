"""Checkpoints as trainers leave them -> the GGUF files that engines run."""

from bitgen.convert.hf import HfCheckpoint, convert

__all__ = ["HfCheckpoint", "convert"]
