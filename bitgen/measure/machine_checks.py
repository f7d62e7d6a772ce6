"""Checks of the machine: each is a function that yields findings and may raise anything."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator

import bitgen
from bitgen import targets
from bitgen.cgroups import cpu_quota
from bitgen.compile import compiler, library, pack
from bitgen.errors import BitgenError, size
from bitgen.kernels import space
from bitgen.kernels.plan import ModelPlan
from bitgen.measure import machine
from bitgen.measure.findings import Finding, Models, readable, unknown
from bitgen.spec import ModelShape, round_up


def versions(_: Models) -> Iterator[Finding]:
    """Of bitgen, Python and the system."""
    system = f"{platform.system()} {platform.release()} on {platform.machine()}"
    fact = f"bitgen {bitgen.__version__}, Python {platform.python_version()} ({sys.executable or 'embedded'}), {system}"
    values = {
        "bitgen": bitgen.__version__, "python": platform.python_version(), "executable": sys.executable,
        "system": targets.host_system(), "kernel": platform.release(), "machine": platform.machine(),
    }  # fmt: skip
    yield Finding("version", "ok", fact, values=values)


def cpu(_: Models) -> Iterator[Finding]:
    """Its name."""
    name, arch = machine.cpu_brand(), targets.host_arch()
    yield Finding("cpu", "ok", f"{name} ({arch})", values={"name": name, "arch": arch})


def levels(_: Models) -> Iterator[Finding]:
    """Each ISA level, by the probe that executes its instructions."""
    host = targets.platform_of()
    try:
        compiler.installed(host)
    except BitgenError as e:
        yield unknown("level", e)
        return
    runs, listed = library.host_isas(), machine.instructions()
    for target in targets.levels(host):
        lacks = [name for name in machine.needs(target) if listed and name not in listed]
        values = {"level": target.isa, "runs": target.isa in runs, "taken": target.isa == runs[0], "lacks": lacks}
        if target.isa == "scalar" == runs[0]:
            advice = "expect it to be slow: bitgen has no kernels for the vector instructions of this CPU"
            yield Finding("level", "warning", f"{target.isa} runs, and is taken: {target.about}", advice, values)
        elif target.isa in runs:
            taken = ", and is taken" if values["taken"] else ""
            yield Finding("level", "ok", f"{target.isa} runs{taken}: {target.about}", values=values)
        elif lacks or not listed:
            why = f"the CPU lacks {', '.join(lacks)}" if lacks else "its probe trapped: the CPU lacks it"
            yield Finding("level", "ok", f"{target.isa} does not run: {why}", values=values)
        elif target.isa == "amx" and not machine.grants_tiles():
            fact = f"{target.isa} does not run: the CPU has it, but the kernel does not grant tiles"
            advice = "run Linux 5.16 or newer, in a virtual machine also on its host; the next level serves meanwhile"
            yield Finding("level", "warning", fact, advice, values)
        else:
            fact = f"{target.isa} does not run: the CPU lists its instructions, but here they trap or compute wrongly"
            advice = "if this is a virtual machine, let it pass the CPU through; the next level serves meanwhile"
            yield Finding("level", "warning", fact, advice, values)


def threads(_: Models) -> Iterator[Finding]:
    """CPUs by affinity and by quota, and how many threads follow from that."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    quota, used, there = cpu_quota(), targets.default_threads(), os.cpu_count()
    parts = [f"{there} CPUs"]
    parts += [f"{affinity} by affinity"] if affinity is not None else []
    parts += [f"{quota:g} by the quota of the control group"] if quota is not None else []
    fact = f"{used} {'thread' if used == 1 else 'threads'}: {', '.join(parts)}"
    values = {"cpus": there, "affinity": affinity, "quota": quota, "threads": used}
    if quota is not None and quota < 1:
        yield Finding(
            "threads", "warning", fact, "grant this container a whole CPU: with less it is stopped midway", values
        )
    else:
        yield Finding("threads", "ok", fact, values=values)


def memory(models: Models) -> Iterator[Finding]:
    """What there is, then what each model takes of it."""
    found = machine.memory()
    if found is None:
        yield Finding("memory", "warning", "not known on this system", "compare the figures below with what you have")
    else:
        limit = f", limit of the control group {size(found.limit.bytes)}" if found.limit else ""
        values = {
            "total_bytes": found.total, "available_bytes": found.available,
            "limit_bytes": found.limit and found.limit.bytes,
        }  # fmt: skip
        fact = f"{size(found.available)} available of {size(found.total)}{limit}"
        yield Finding("memory", "ok", fact, values=values)
    for name, shape in readable(models):
        yield _fits(name, shape, found)


def _fits(name: str, shape: ModelShape, found: machine.Memory | None) -> Finding:
    """Whether a model's weights and its KV cache at full length find room."""
    weights, f16, int8 = weight_bytes(shape), kv_bytes(shape, 2, 0), kv_bytes(shape, 1, 4)
    fact = (
        f"{name}: weights about {size(weights)}, KV cache of {shape.context:,} tokens {size(f16)} (f16) "
        f"or {size(int8)} (int8)"
    )
    values = {
        "model": name, "context_tokens": shape.context, "weights_bytes": weights,
        "kv_f16_bytes": f16, "kv_int8_bytes": int8,
    }  # fmt: skip
    free = found.available if found else sys.maxsize
    if weights > free:
        advice = "free memory or take a smaller model: weights without room are read from the disk for every token"
    elif weights + int8 > free:
        tokens = shape.context * (free - weights) // int8
        advice = f"keep the context below {tokens:,} tokens, with --cache int8"
    elif weights + f16 > free:
        advice = "with --cache int8 all of its context fits"
    else:
        return Finding("memory", "ok", fact, values=values)
    return Finding("memory", "warning", fact, advice, values)


def weight_bytes(shape: ModelShape) -> int:
    """About what a packed model takes, whatever kernels it is packed for."""
    matrices = {role: space.default_plan(gemm, "scalar") for role, gemm in shape.all_matrices.items()}
    return pack.expected_bytes(shape, ModelPlan("scalar", matrices, {}, None), "certified")


def kv_bytes(shape: ModelShape, width: int, beside: int) -> int:
    """Bytes of keys and values at full context: `width` of a number, `beside` of a position's scale, for each head.

    As runtime/core/state.c allocates them, in blocks of 256 positions; with the two states of Gated DeltaNet.
    """
    positions = round_up(shape.context, 256)
    numbers = round_up(shape.head_dim, 4) + round_up(shape.head_dim, 16)
    return shape.attending * shape.kv_heads * positions * (numbers * width + 2 * beside) + 2 * shape.state_bytes


def model(models: Models) -> Iterator[Finding]:
    """The models that the other checks are about."""
    for name, shape_of in models.items():
        shape = shape_of()
        weights = shape.ternary_weights + shape.vocab * shape.hidden * (1 if shape.tied else 2)
        fact = f"{name}: {weights / 1e6:,.1f} million weights, context of {shape.context:,} tokens"
        values = {
            "model": name,
            "architecture": shape.architecture,
            "weights": weights,
            "context_tokens": shape.context,
        }
        yield Finding("model", "ok", fact, values=values)
