"""Programs of libFuzzer around the runtime: tests/fuzz/*.c, built with the files that their inputs edit.

`run` lets one search for a while and says what came of it. The corpora, tests/fuzz/corpus/<target>, hold an input for
every fault that was found, and what reaches the code behind the checks.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import places
import runtime_lab

from bitgen import data, targets
from bitgen.checkpoints import synth
from bitgen.checkpoints.checkpoint import ALL
from bitgen.compile import clang, library, pack, standalone
from bitgen.engine.sampling import Sampling
from bitgen.errors import BitgenError
from bitgen.gguf.reader import read_gguf
from bitgen.kernels import plan, space
from bitgen.spec import DeltaShape, Hadamard, KernelSpec, Layout, MatrixPlan
from bitgen.text import tables
from bitgen.text.tokenizer import Tokenizer

FUZZ = places.TESTS / "fuzz"
SANITIZERS = "fuzzer,address,undefined"
OPTIONS = {"ASAN_OPTIONS": "allocator_may_return_null=1:max_allocation_size_mb=64:detect_leaks=1"}
SHAPE = runtime_lab.shape("fuzz", hidden=64, intermediate=96, layers=1, heads=4, kv_heads=2, head_dim=16, vocab=48)
HYBRID = replace(SHAPE, name="fuzz-hybrid", layers=2, delta=DeltaShape(2, 1, 2, 8, 32, 3), sub_norms=False)
ROTATED = replace(HYBRID, name="fuzz-rotated", hadamard=Hadamard(16, signed=True, regrouped=True))
FORMATS = ("i2_s", "t5", "tl2")


Tree = tuple[dict[str, str], list[clang.Unit]]


@dataclass(frozen=True)
class Target:
    """What a fuzzer is built from."""

    tree: Callable[[], Tree]  # besides its own file and headers
    seeds: Callable[[], list[bytes]]  # right files, which inputs edit


def why_not() -> str | None:
    """Why this host builds no fuzzers, or None."""
    try:
        compiler = clang.find_compiler(targets.platform_of())
    except BitgenError as error:
        return str(error)
    source = b"int LLVMFuzzerTestOneInput(const char *data, unsigned long size) { return data && size > 9; }"
    flags = (*compiler.target_flags(targets.platform_of()), f"-fsanitize={SANITIZERS}", "-xc", "-", "-o", os.devnull)
    made = subprocess.run([*compiler.command, *flags], input=source, capture_output=True)
    return None if made.returncode == 0 else "this clang has no libFuzzer (Debian: libclang-rt-14-dev)"


# ---- what is built -------------------------------------------------------------------------------------------


def isa() -> str:
    """The best level of this host whose prefill kernels look sums up, or the best."""
    levels = library.host_isas()
    with_tables = (x for x in levels if any(t.lut_groups for t in _tiles("gemm", x, _layouts(x)["i2_s"])))
    return next(with_tables, levels[0])


def _layouts(level: str) -> dict[str, Layout]:
    """Format -> a layout of it for the matrix o."""
    return {x.format: x for x in space.candidate_layouts(SHAPE.matrices["o"], level, True)}


def _tiles(op: str, level: str, layout: Layout) -> list:  # type: ignore[type-arg]
    return space.candidate_tiles(op, SHAPE.matrices["o"], level, layout, True)  # type: ignore[arg-type]


def _model_plan() -> plan.ModelPlan:
    """A format for each matrix, as many as there are; of layers of both kinds, since all models share one library."""
    level, matrices = isa(), {}
    for number, (role, gemm) in enumerate(HYBRID.matrices.items()):
        layouts = {x.format: x for x in space.candidate_layouts(gemm, level, True)}
        layout = layouts[[f for f in FORMATS if f in layouts][number % len(FORMATS)]]
        gemv, gemm_tiles = (space.candidate_tiles(op, gemm, level, layout, True) for op in ("gemv", "gemm"))
        matrices[role] = MatrixPlan(layout, gemv[0], gemm_tiles[0])
    return plan.ModelPlan(level, matrices, dict.fromkeys(matrices, "test"), None)


def _model() -> Tree:
    return library.tree([library.Level.of_model(HYBRID, _model_plan())], "text/*.c")


class _Wide(synth.SynthCheckpoint):
    """Rows that float16 does not hold: of the embedding bfloat16 does, of the head only float32."""

    def dense(self, name: str, rows: slice = ALL) -> np.ndarray:  # type: ignore[type-arg]
        values = super().dense(name, rows)
        if values.ndim == 1:
            return values
        if name == "output.weight":
            return np.asarray(values * np.float32(1.001))
        return np.asarray(np.sign(values).astype(np.float32) * np.float32(2.0**-30))


def _packed_models() -> list[bytes]:
    """One of every head, of wide rows, with a tokenizer behind it, hybrid ones. Inputs name their places: new ones
    come last."""
    own = replace(SHAPE, tied=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.bgpk"

        def packed(model: synth.SynthCheckpoint, head: pack.Head, tokens: bytes = b"") -> bytes:
            pack.write(path, model, _model_plan(), head)
            if tokens:
                standalone._append(path, None, tokens, vars(Sampling()))
            return path.read_bytes()

        heads: tuple[pack.Head, ...] = ("f16", "int8", "certified")
        made = [packed(synth.SynthCheckpoint(shape), head) for head in heads for shape in (SHAPE, own)]
        made += [packed(_Wide(own), head) for head in ("f16", "certified")]
        made.append(packed(synth.SynthCheckpoint(SHAPE), "f16", tables.blob(_pieces())))
        return made + [packed(synth.SynthCheckpoint(shape), "f16") for shape in (HYBRID, ROTATED)]


MERGES = ("t h", "th e", "i n", "in g", "Ġ a", "Ġ th", "Ġth e", "1 2", "Ã ©", "e Ì", "eÌ ģ", "Ċ Ċ")


def _byte_level(kind: str) -> Tokenizer:
    keys = synth.vocabulary(300)
    keys["tokenizer.ggml.tokens"][256 : 256 + len(MERGES)] = [merge.replace(" ", "") for merge in MERGES]
    return Tokenizer.from_metadata(keys | {"tokenizer.ggml.pre": kind, "tokenizer.ggml.merges": list(MERGES)})


def _pieces() -> Tokenizer:
    pieces = [*"\u2581abcdeho1é日\n", "\u2581a", "ab", "abc", "\u2581ab", "he", "aa", "aaaa"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    return Tokenizer.from_metadata(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.scores": -np.arange(len(tokens), dtype=np.float32),
            "tokenizer.ggml.token_type": np.repeat([2, 3, 3, 6, 1], [1, 1, 1, 256, len(pieces)]).astype(np.int32),
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
        }
    )


def _vocabularies() -> list[bytes]:
    """Small tokenizers of every kind. Inputs name places in them: what is added comes last."""
    words = map(_byte_level, ("gpt-2", "llama-bpe", "qwen2", "default"))
    return [tables.blob(tokenizer) for tokenizer in (*words, _pieces())]


def _and_the_one_that_ships() -> list[bytes]:
    return [*_vocabularies(), tables.blob(Tokenizer.from_metadata(read_gguf(data.shipped_path()).metadata))]


def _text() -> Tree:
    files = library.runtime_files("text/*.c")
    return {**library.runtime_files("**/*.h"), **files}, [clang.Unit(f, library.object_name(f)) for f in files]


def _tuner() -> Tree:
    level, gemm = isa(), SHAPE.matrices["o"]
    specs = [KernelSpec(op, gemm, level, layout, tile) for layout in _layouts(level).values()
             for op in ("gemv", "gemm") for tile in _tiles(op, level, layout)[:2]]  # fmt: skip
    return library.tree([library.Level.of_kernels(level, specs)], "programs/system.c")


TARGETS = {
    "model": Target(_model, _packed_models),
    "vocabulary": Target(_text, _vocabularies),
    "text": Target(_text, _and_the_one_that_ships),
    "tuner": Target(_tuner, list),
}
"""A file of tests/fuzz -> what it is built from."""


def _seeds(files: list[bytes]) -> str:
    arrays = [
        f"_Alignas(64) static const uint8_t seed_{i}[] = {{{','.join(map(str, file))}}};"
        for i, file in enumerate(files)
    ]
    rows = "".join(f"{{seed_{i}, sizeof seed_{i}}}," for i in range(len(files)))
    table = f"const file seeds[] = {{{rows}}};\nconst uint32_t n_seeds = {len(files)};\n"
    return '#include "edits.h"\n' + "\n".join(arrays) + "\n" + table


def build(name: str) -> Path:
    """The program of a target."""
    sources, units = TARGETS[name].tree()
    own = {f"fuzz_{name}.c": (FUZZ / f"{name}.c").read_text(), "seeds.c": _seeds(TARGETS[name].seeds())}
    tuner = data.folder("runtime") / "programs" / "tuner.c"  # the fuzzer of its name includes it
    sources |= own | {path.name: path.read_text() for path in FUZZ.glob("*.h")} | {"tuner.c.h": tuner.read_text()}
    units += [clang.Unit(file, library.object_name(file)) for file in own]
    # With -O1 inputs go eight times as fast; but these kernels take half a minute to compile so.
    level = {True: "-O0", False: "-O1"}
    units = [replace(u, flags=(*u.flags, level["_mixed_" in u.source], "-gline-tables-only")) for u in units]
    return clang.build(f"fuzz-{name}", sources, units, {}, clang.BuildOptions(program=name, sanitize=SANITIZERS)).path


# ---- what is run ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What came of a search."""

    executions: int
    coverage: int  # edges of the control flow that were taken
    faults: list[Path]  # inputs that end the program
    log: str


def run(name: str, seconds: int, folder: Path) -> Outcome:
    """Search for `seconds`, from the corpus on; new inputs and faults go to `folder`."""
    program = build(name)
    found, faults = folder / "corpus", folder / "faults"
    for each in (found, faults):
        each.mkdir(parents=True, exist_ok=True)
    options = (f"-max_total_time={seconds}", "-timeout=30", "-rss_limit_mb=3000", "-malloc_limit_mb=100000",
               "-print_final_stats=1", f"-artifact_prefix={faults}/")  # fmt: skip
    done = subprocess.run([program, *options, found, FUZZ / "corpus" / name], capture_output=True, text=True,
                          errors="replace", env={**os.environ, **OPTIONS})  # fmt: skip
    executions = re.search(r"stat::number_of_executed_units: (\d+)", done.stderr)
    coverage = re.findall(r" cov: (\d+)", done.stderr)
    return Outcome(
        int(executions[1]) if executions else 0,
        int(coverage[-1]) if coverage else 0,
        sorted(faults.iterdir()) if done.returncode else [],
        done.stderr,
    )


def keep(name: str, folder: Path) -> None:
    """Add to the corpus what a run found: the least that takes all edges that were taken."""
    done = subprocess.run([build(name), "-merge=1", "-use_counters=0", FUZZ / "corpus" / name, folder / "corpus"],
                          capture_output=True, env={**os.environ, **OPTIONS})  # fmt: skip
    done.check_returncode()
