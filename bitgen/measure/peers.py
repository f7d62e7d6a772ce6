"""bitgen beside other engines: same shape, same tokens, same threads, one run, in alternation.

A peer runs in a process of its own (`peer_engines.py`), so that its crashes and its memory are its own. Before its
speed is quoted, its output is checked: on a small model of the same layer shape its logits after the very token
counts that are timed must agree with bitgen's. An engine that computes something else gets a sentence, not a ratio.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitgen import data, store, uses
from bitgen.checkpoints import synth
from bitgen.checkpoints.checkpoint import ALL
from bitgen.engine.model import Model
from bitgen.errors import BitgenError, EngineError
from bitgen.gguf.writer import write_gguf
from bitgen.measure import bench
from bitgen.measure.report import BenchReport, Case, PeerRow, Race
from bitgen.spec import Activation, Listener, ModelShape


@dataclass(frozen=True)
class Peer:
    """An engine to compare with."""

    name: str
    package: str  # on PyPI
    module: str  # what the package installs
    activation: Activation | None  # the only one it has for models with sub-norms; None: the model's own
    command: tuple[str, ...]  # starts the process that serves it

    @property
    def installed(self) -> bool:
        """Whether this Python has it."""
        return importlib.util.find_spec(self.module) is not None

    def activation_for(self, shape: ModelShape) -> Activation:
        """What its FFN computes for a model of this shape."""
        return self.activation if self.activation and shape.sub_norms else shape.activation


def _served(name: str) -> tuple[str, ...]:
    return sys.executable, "-m", "bitgen.measure.peer_engines", name


PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer("llama.cpp", "llama-cpp-python", "llama_cpp", "silu", _served("llama.cpp")),
        Peer("litespark", "litespark-inference", "litespark_inference", None, _served("litespark")),
    )
}

AGREES = 0.99
"""Least correlation of a peer's logits with bitgen's: each rounds activations and head in its own way; see `check`."""
CHECK_LAYERS, CHECK_VOCAB = 2, 512
SETTLE_S = 0.05
"""Seconds to wait after a peer's turn: OpenMP's threads spin for some milliseconds more, and would take a core."""


def require(names: Sequence[str]) -> list[Peer]:
    """The peers of these names; BitgenError with the command that installs what is missing."""
    peers = [PEERS[name] for name in dict.fromkeys(names)]
    missing = [peer for peer in peers if not peer.installed]
    if missing:
        packages = " ".join(peer.package for peer in missing)
        names_ = " and ".join(peer.name for peer in missing)
        raise BitgenError(f"{names_}: not installed in this Python. {sys.executable} -m pip install {packages}")
    return peers


# ---- the process --------------------------------------------------------------------------------------------


class Process:
    """A peer's process. EngineError carries the error that it reported, or how it ended."""

    def __init__(self, peer: Peer, threads: int) -> None:
        count = str(threads)
        self._peer, self._stderr = peer, tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            peer.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": count, "OPENBLAS_NUM_THREADS": count, "PYTHONPATH": _path()},
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """One request, one answer."""
        assert self._process.stdin and self._process.stdout
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line.endswith("\n"):
            raise EngineError(f"{self._peer.name}: {self._death()}")
        told: dict[str, Any] = json.loads(line)
        if "error" in told:
            raise EngineError(f"{self._peer.name}: {told['error']}")
        return told

    def close(self) -> None:
        """End it, now."""
        self._process.kill()
        self._process.communicate()
        self._stderr.close()

    def _death(self) -> str:
        code = self._process.wait()
        self._stderr.seek(0)
        last = self._stderr.read().strip().splitlines()[-1:]
        end = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return ": ".join([f"its process {end}", *last])


def _path() -> str:
    """PYTHONPATH with which another process finds this bitgen."""
    here = str(Path(__file__).resolve().parent.parent.parent)
    return os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])


@contextmanager
def opened(peer: Peer, model: Path, threads: int, context: int) -> Iterator[tuple[Process, str]]:
    """A process with a prepared model open, and what it says it runs."""
    process = Process(peer, threads)
    try:
        yield process, process.ask(open=str(model), threads=threads, context=context)["about"]
    finally:
        process.close()


def prepared(peer: Peer, source: Path) -> Path:
    """The model file as the peer reads it, made now unless it is cached."""
    stat = source.stat()
    key = f"{source.resolve()} {stat.st_size} {stat.st_mtime_ns} {peer.name} {version(peer.package)}"
    digest = hashlib.sha256(os.fsencode(key)).hexdigest()[:16]
    path = data.cached("peers") / f"{store.slug(source.stem)}-{peer.name}-{digest}.gguf"

    def make() -> None:
        with closing(Process(peer, 1)) as process, data.replacing(path) as part:
            process.ask(prepare=str(source), to=str(part))

    data.once(path, path.exists, make, lambda: None)
    uses.touch(path)
    return path


# ---- is it right? -------------------------------------------------------------------------------------------


def calls(kind: str, ids: list[int]) -> list[list[int]]:
    """What an engine is asked for: a prompt at once, or token by token."""
    return [ids] if kind == "prefill" else [[id] for id in ids]


class _Coarse(synth.SynthCheckpoint):
    """Random weights whose embedding has 15 values a row, so that even an int4 head loses nothing."""

    def dense(self, name: str, rows: slice = ALL) -> npt.NDArray[np.floating[Any]]:
        """Norms as they are; embedding and head rounded, float16 [rows, hidden]."""
        values = super().dense(name, rows)
        if values.ndim == 1:
            return values
        step = np.abs(values).max(axis=1, keepdims=True).astype(np.float32) / 7
        rounded: npt.NDArray[np.float16] = (np.rint(values / step) * step).astype(np.float16)
        return rounded


@dataclass(frozen=True)
class Verdict:
    """Correlation of a peer's logits with bitgen's, if there are any to compare, and what is wrong with them."""

    agreement: float | None = None
    error: str | None = None


def check(peer: Peer, shape: ModelShape, cases: Sequence[tuple[str, int]], threads: int) -> list[Verdict]:
    """A verdict for each (kind, tokens) on the peer's logits after the last token.

    The model is random, with the layers of `shape` but only a few of them and a small vocabulary, and the activation
    that the peer computes. Its logits depend on every matrix, so engines that compute the same function differ by their
    roundings only (llama.cpp and Litespark, where right: correlation 0.998 and more); another activation gives 0.94.
    """
    longest = max(tokens for _, tokens in cases)
    wanted = replace(shape, activation=peer.activation_for(shape))
    with small_model(wanted, longest + 1) as (source, ours):
        process, there = Process(peer, threads), source.with_name("peer.gguf")
        try:
            process.ask(prepare=str(source), to=str(there))
            process.ask(open=str(there), threads=threads, context=longest + 1)
            return [_verdict(process, ours, calls(kind, bench.prompt(ours, tokens))) for kind, tokens in cases]
        except EngineError as e:
            return [Verdict(error=str(e))] * len(cases)
        finally:
            process.close()


@contextmanager
def small_model(shape: ModelShape, context: int) -> Iterator[tuple[Path, Model]]:
    """A random model with the layers of `shape`, but only a few of them and few tokens: its file, and opened."""
    enough = shape.delta.period if shape.delta else CHECK_LAYERS  # layers of each kind
    layers, vocab = min(shape.layers, enough), min(shape.vocab, CHECK_VOCAB)
    small = replace(shape, name="check", layers=layers, vocab=vocab, context=context)
    with data.scratch() as folder:
        path = folder / "check.gguf"
        write_gguf(path, _Coarse(small))
        model = Model.load(path)
        model.packed.unlink()  # mapped already, and of no further use
        yield path, model


def _verdict(process: Process, ours: Model, wanted: list[list[int]]) -> Verdict:
    told = process.ask(run=wanted, logits=True)
    if not told["finite"]:
        return Verdict(error="wrong output: its logits are not finite; no speed is quoted")
    agreement = correlation(last_logits(ours, wanted), np.asarray(told["logits"], np.float32))
    if agreement >= AGREES:
        return Verdict(agreement)
    return Verdict(
        agreement,
        f"wrong output: its logits correlate with bitgen's by {agreement:.2f} for the same weights; no speed is quoted",
    )


def last_logits(model: Model, wanted: list[list[int]]) -> npt.NDArray[np.float32]:
    """bitgen's logits [vocab] after the last of these calls."""
    with model.session(context=sum(map(len, wanted))) as session:
        for tokens in wanted:
            logits = session.forward(tokens)
    return logits


def correlation(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    """Pearson's; 0 where one of them is constant or they are not of one length."""
    if a.shape != b.shape or not a.std() or not b.std():
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


# ---- how fast is it? ----------------------------------------------------------------------------------------


def compare(
    model: Model, names: Sequence[str], report: BenchReport, listener: Listener = lambda *_: None
) -> tuple[PeerRow, ...]:
    """Every case of a report of `bench` that has one sequence and an empty cache, by bitgen and each peer in turn."""
    cases = [case for case in report.cases if case.batch == 1 and case.context == 0]
    return tuple(row for peer in require(names) for row in _compare(model, peer, cases, listener)) if cases else ()


def _compare(model: Model, peer: Peer, cases: Sequence[Case], listener: Listener) -> Iterator[PeerRow]:
    """Check the peer's output for all cases, then race where it is right, in one process for each thread count."""
    listener(f"{peer.name}: checking", 0, len(cases))
    tests = list(dict.fromkeys((case.kind, case.tokens) for case in cases))
    verdicts = dict(zip(tests, check(peer, model.shape, tests, max(c.threads for c in cases)), strict=True))
    done = 0
    for threads, group in groupby(cases, key=lambda case: case.threads):
        rows = [_unraced(model, peer, case, verdicts[case.kind, case.tokens]) for case in group]
        right = [i for i, row in enumerate(rows) if not row.error]
        try:
            with ExitStack() as stack:
                if right:
                    listener(f"{peer.name}: opening the model", done, len(cases))
                    room = max(case.tokens for case in cases) + 1
                    process, about = stack.enter_context(opened(peer, prepared(peer, model.path), threads, room))
                for i in right:
                    case = rows[i].case
                    listener(f"{peer.name}: {case.kind} {case.tokens}", done, len(cases))
                    rows[i] = replace(rows[i], about=about, race=_race(model, process, case))
                    done += 1
        except EngineError as e:
            rows = [row if row.race or row.error else replace(row, error=str(e)) for row in rows]
        yield from rows


def _unraced(model: Model, peer: Peer, case: Case, verdict: Verdict) -> PeerRow:
    """A row before its race."""
    about, activation = f"{peer.package} {version(peer.package)}", peer.activation_for(model.shape)
    return PeerRow(peer.name, about, activation, case, None, verdict.agreement, verdict.error)


def _race(model: Model, process: Process, case: Case) -> Race:
    """RUNS rounds, each of both; the first of both warms up. EngineError where the peer's logits are not finite."""
    wanted = calls(case.kind, bench.prompt(model, case.tokens))
    process.ask(run=wanted)
    time.sleep(SETTLE_S)
    ours, theirs = [], []
    with bench.runs(model, case) as (_, timed):
        for seconds in timed:
            told = process.ask(run=wanted)
            if not told["finite"]:
                raise EngineError(
                    f"wrong output: its logits after {case.tokens} tokens are not finite; no speed is quoted"
                )
            time.sleep(SETTLE_S)
            ours.append(case.tokens / seconds)
            theirs.append(case.tokens / told["seconds"])
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    return Race(statistics.median(theirs), min(theirs), max(theirs), statistics.median(ours), ratio)
