"""Tuning on a device behind SSH: a static program of candidate kernels runs there, the search runs here.

    Device     ssh: finds a folder where programs may execute, copies a program there, runs it, and deletes it
    Tuner      the protocol of that program, runtime/programs/tuner.c, over its stdin and stdout
    RemoteLab  a `Lab` that verifies and times through a Tuner

What the device says is not trusted: lines and files have limits, words are checked, and none is printed as it is.
One connection serves one program. Verification sends few nonzero rows of weights and receives a checksum of all
results, so a slow link is no obstacle: a few hundred kilobytes per layout of a large matrix.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shlex
import signal
import statistics
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from bitgen import targets
from bitgen.compile import clang, library
from bitgen.compile.clang import BuildOptions
from bitgen.compile.library import Level
from bitgen.errors import LONGEST, RemoteError, UnsupportedError, brief
from bitgen.kernels import plan
from bitgen.spec import KernelSpec, Layout, Listener
from bitgen.tune import lab
from bitgen.tune.bands import banded, spans
from bitgen.tune.lab import PREFILL_TOKENS, REPS, VERIFY_TOKENS
from bitgen.tune.ssh import ssh_command

T = TypeVar("T")

CONNECT_SECONDS = 60
ANSWER_SECONDS = 600  # a prefill kernel in portable C on a slow core takes minutes
SYSTEM, PROGRAM = "linux", "tuner.c"  # whatever this host is
GREETING = "bitgen-tuner 1"
LINE, FILE = 1 << 16, 1 << 24  # bytes that one may have which the device sends

SCRIPT = "; ".join(
    (
        'echo "bitgen: $(uname -s -m)"',
        "read -r bytes || exit 1",
        # An empty file is a script to the shell, which executes it unless nothing may execute in that folder.
        'for d in "${TMPDIR:-/tmp}" /tmp "${HOME:-.}"; do t=$d/bitgen-tuner.$$; mkdir -m 700 "$t" || { t=; continue; }',
        ': >"$t/tuner" && chmod 700 "$t/tuner" && "$t/tuner" </dev/null && break; rm -rf "$t"; t=; done 2>/dev/null',
        '[ "$t" ] || { echo "no folder where programs may execute: not TMPDIR, /tmp, nor home" >&2; exit 1; }',
        "trap 'rm -rf \"$t\"' EXIT",
        'trap "exit 1" HUP INT TERM PIPE',
        'head -c "$bytes" >"$t/tuner"',
        '[ "$(wc -c <"$t/tuner")" -eq "$bytes" ] || { echo "no room in $t for $bytes bytes" >&2; exit 1; }',
        '"$t/tuner"',
        "exit $?",
    )
)
"""The script that the device's sh runs. Its stdin is a program's size, the program, then the program's own stdin."""

ADVICE = {
    "Permission denied (": "bitgen asks for no password: load a key into an agent (ssh-add) or use --ssh 'ssh -i KEY'",
    "Host key verification failed": "connect once by hand with ssh and accept the host's key",
    "Could not resolve": "check the name, or give it a Host entry in ~/.ssh/config",
    "Connection refused": "no SSH server listens there: check the port, --remote user@host:port",
    "timed out": "check the address, and that the device is on",
    "No route to host": "check the address, and that the device is on",
    "may execute": "let TMPDIR name one there",
}
"""Words in the errors of ssh or of the script -> what to do about them."""


class Tuner:
    """The client of runtime/programs/tuner.c, which runs in another process or on another machine.

    Every method raises RemoteError when the connection or the program fails.
    """

    def __init__(self, command: Sequence[str], name: str) -> None:
        self.name = name
        self._stage = "cannot connect"
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            # A session of its own: Ctrl-C at a terminal is for this program, which then ends the connection itself.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._complaints,
                start_new_session=True,
            )
        except OSError as e:
            raise RemoteError(f"cannot run {command[0]}: {e.strerror}; install OpenSSH or name it: --ssh") from e
        assert self._process.stdin and self._process.stdout
        self._input, self._output = self._process.stdin, self._process.stdout.fileno()
        self._ready = selectors.DefaultSelector()
        self._ready.register(self._output, selectors.EVENT_READ)
        self._pending = b""
        self._waiting = False  # for the answer to a request

    def greet(self) -> None:
        """Wait for the program's first line, which names the protocol's version."""
        self._stage = "the program does not start there (was it made for that architecture? --arch names another)"
        line = self.receive_line(CONNECT_SECONDS)
        if line != GREETING:
            raise RemoteError(f"{self.name}: {self._stage}; it says {brief(line)}")
        self._stage = "lost midway; the same command goes on after the last matrix decided"

    def request(self, line: str, *payload: bytes) -> list[str]:
        """Send one line and its payload; the words of the answer. RemoteError when there is none or it is an error."""
        self._waiting = True
        self.send(f"{line}\n".encode(), *payload)
        status, _, rest = self.receive_line().partition(" ")
        self._waiting = False
        if status != "ok":
            raise RemoteError(f"{self.name}: `{brief(line)}` failed there: {brief(rest or status)}")
        return rest.split()

    def read(self, request: str, what: Callable[[list[str]], T]) -> T:
        """What the words of an answer mean; RemoteError when `what` cannot make sense of them."""
        words = self.request(request)
        try:
            return what(words)
        except (ValueError, IndexError, ArithmeticError):
            raise RemoteError(f"{self.name}: `{request}` makes no sense there: {brief(' '.join(words))}") from None

    def file(self, path: str) -> str:
        """The text of a file on the device; "" when there is none."""
        size = self.read(f"file {path}", _size)
        deadline = time.monotonic() + ANSWER_SECONDS
        while len(self._pending) < size:
            self._receive(deadline)
        text, self._pending = self._pending[:size], self._pending[size:]
        return text.decode(errors="replace")

    def send(self, *data: bytes) -> None:
        """Write to the program's stdin."""
        try:
            for each in data:
                self._input.write(each)
            self._input.flush()
        except OSError:  # a broken pipe
            raise self._ended() from None

    def receive_line(self, seconds: float = ANSWER_SECONDS) -> str:
        """The next line of the program's stdout."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self._pending:
            self._receive(deadline)
            if len(self._pending) > LINE:
                raise RemoteError(f"{self.name}: {self._stage}: a line of more than {LINE} bytes")
        line, _, self._pending = self._pending.partition(b"\n")
        return line.decode(errors="replace").rstrip("\r")

    def close(self) -> None:
        """End the program: it exits at the end of its input, which is after its answer if it works on one."""
        for pipe in (self._input, self._process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        try:
            self._process.wait(timeout=0 if self._waiting else 10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._ready.close()
        self._complaints.close()

    def _receive(self, deadline: float) -> None:
        if not self._ready.select(max(0.0, deadline - time.monotonic())):
            raise RemoteError(f"{self.name}: {self._stage}: no answer in time")
        data = os.read(self._output, 1 << 16)
        if not data:
            raise self._ended()
        self._pending += data

    def _ended(self) -> RemoteError:
        """The error for a program that ended, with the last lines of its stderr."""
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            code = 0
        self._complaints.seek(max(0, self._complaints.seek(0, os.SEEK_END) - LINE))
        text = self._complaints.read().decode(errors="replace")
        last = "; ".join(line.strip() for line in text.splitlines()[-3:] if line.isprintable() and line.strip())[:400]
        number = -code if code < 0 else code - 128  # a signal's number, as Popen reports it and as a shell does
        if not last and number in {s.value for s in signal.Signals}:
            last = f"it was ended by {signal.Signals(number).name}"
        advice = "".join(f"\n  {what}" for words, what in ADVICE.items() if words in text)
        return RemoteError(f"{self.name}: {self._stage}: {last or f'exit code {code}'}{advice}")


def between(value: T, least: float, most: float) -> T:
    """A number that is neither smaller nor larger; ValueError of any other, and of what is no number."""
    if not least <= value <= most:  # type: ignore[operator]
        raise ValueError
    return value


class Device:
    """A `Site` behind SSH: `target` is [user@]host[:port] or a Host of the user's ssh configuration.

    `ssh` is the ssh command with its options (default: BITGEN_SSH, else ssh), `arch` the architecture to compile for
    (default: by `uname -m` there). The listener is told what is being waited for.
    """

    def __init__(
        self, target: str, arch: str | None = None, ssh: str | None = None, listener: Listener = lambda *_: None
    ) -> None:
        self._target = target
        listener("connecting to the device", 0, 0)
        self._command = [*ssh_command(target, ssh), f"exec sh -c {shlex.quote(SCRIPT)}"]
        with contextlib.closing(self._connect()) as tuner:
            self.arch = arch or _arch(tuner.name)
            self._platform = targets.platform_of(self.arch, SYSTEM)
            levels = [Level.of_kernels(t.isa, ()) for t in targets.levels(self._platform)]
            spec = {"purpose": "finds what a device executes"}
            options = BuildOptions(self._platform, PROGRAM, listener=listener, stage="compiling probes for the device")
            probe = library.assemble("tuner", levels, spec, options)
            listener("asking the device what it executes", 0, 0)
            _bring(tuner, probe.path)
            self.isas = tuner.read("levels", _executed)
            self.cpus = tuner.read("cpus", _cpus)
            self.cpu = "".join(filter(str.isprintable, plan.cpu_name(tuner.file("/proc/cpuinfo"))))[:LONGEST]
            self.load = _load(tuner.file("/proc/loadavg"))
        flags = [flag for flag in probe.spec["flags"] if flag not in clang.COMMON_FLAGS]  # type: ignore[attr-defined]
        self.compiler = " ".join((str(probe.spec["compiler"]), *flags))
        self.basis = f"measured on {self.cpu} by ssh"

    def lab(self, isa: str, specs: Sequence[KernelSpec], threads: int, listener: Listener) -> RemoteLab:
        """Build a program of the candidates of one shape and start it on the device.

        UnsupportedError when the device cannot execute the level.
        """
        if isa not in self.isas:
            raise UnsupportedError(f"{self._target} cannot execute {isa!r}, but {', '.join(self.isas)}")
        built = library.for_kernels(isa, specs, BuildOptions(self._platform, PROGRAM, listener=listener))
        listener("sending the kernels to the device", 0, 0)
        tuner = self._connect()
        try:
            _bring(tuner, built.path)
            return RemoteLab(tuner, specs, threads)
        except BaseException:
            tuner.close()
            raise

    def _connect(self) -> Tuner:
        """Start the script, which then waits for a program; the tuner's name also gives the device's system."""
        tuner = Tuner(self._command, self._target)
        try:
            line, deadline = "", time.monotonic() + CONNECT_SECONDS
            while not line.startswith("bitgen: "):  # skip what the login prints before
                line = tuner.receive_line(deadline - time.monotonic())
        except BaseException:
            tuner.close()
            raise
        tuner.name = f"{self._target} ({brief(line.removeprefix('bitgen: '))})"
        return tuner


def _arch(name: str) -> str:
    """The architecture of a device by its tuner's name, which ends in (SYSTEM MACHINE)."""
    system, _, machine = name.rpartition("(")[2].rstrip(")").partition(" ")
    try:
        if system == "Linux":
            return targets.arch_of(machine)
    except UnsupportedError:
        pass
    raise RemoteError(f"{name}: programs are made for Linux on {', '.join(targets.ARCHES)} only; --arch chooses one")


def _bring(tuner: Tuner, program: Path) -> None:
    """Send a program to the script and wait for its greeting."""
    data = program.read_bytes()
    tuner.send(f"{len(data)}\n".encode(), data)
    tuner.greet()


class RemoteLab:
    """A `Lab` of candidates that a Tuner runs.

    The weights of verification are equal except for three bands of rows: they pack into equal bytes in every layout.
    """

    def __init__(self, tuner: Tuner, specs: Sequence[KernelSpec], threads: int) -> None:
        self._tuner, self._threads = tuner, threads
        self._index = {spec: i for i, spec in enumerate(specs)}
        self._layout: Layout | None = None
        shape = specs[0].shape
        self._tokens = max(VERIFY_TOKENS.values())
        self._trial = lab.Trial(shape, banded(shape, np.random.default_rng(0)), self._tokens)
        sets = list(self._trial.extremes(self._tokens))
        self._expected = [self._trial.answer(q).astype("<i4") for q in sets]
        rows = [self._trial.rows(q).tobytes() for q in sets]
        tuner.request(f"activations {sum(map(len, rows))}", *rows)
        self._stream = lab.WeightStream(lab.stream_bytes(tuner.file), specs)
        tuner.request(f"stream {self._stream.size}")

    def verify(self, spec: KernelSpec) -> None:
        """Compare with the oracle on random and extreme activations, with all threads."""
        n = VERIFY_TOKENS[spec.op]
        if spec.layout != self._layout:
            packed = self._trial.pack(spec.layout)
            self._tuner.request(f"weights {packed.size}", *spans(packed))
            self._layout = spec.layout
        for i, y in enumerate(self._expected):
            request = f"verify {self._index[spec]} {i * self._tokens} {n} {self._threads}"
            if self._tuner.read(request, _checksum) != zlib.crc32(y[:n].tobytes()):
                raise lab.wrong(spec)

    def seconds(self, spec: KernelSpec, threads: int | None = None) -> float:
        """Median seconds of one call, with weights that come from memory."""
        n, reps = PREFILL_TOKENS if spec.op == "gemm" else 1, REPS[spec.op]
        at, copies = self._stream.place(spec, reps)
        arguments = (self._index[spec], at, copies, n, threads or self._threads, reps)
        return self._tuner.read(
            f"time {' '.join(map(str, arguments))}",
            _median,
        )

    def bandwidth(self) -> float:
        """Sequential read bandwidth, bytes per second."""
        return self._tuner.read(f"bandwidth {self._threads}", _rate)

    def peak(self) -> float:
        """Peak of the integer dot product, operations per second."""
        return self._tuner.read(f"peak {self._threads}", _rate)

    def weight_bytes(self, spec: KernelSpec) -> int:
        """Bytes of the packed matrix."""
        return lab.weight_bytes(spec)

    def close(self) -> None:
        """End the program on the device."""
        self._tuner.close()


def _size(words: list[str]) -> int:
    """Bytes of a file."""
    return between(int(words[0]), 0, FILE)


def _cpus(words: list[str]) -> int:
    """CPUs, which are threads to use."""
    return between(int(words[0]), 1, 1024)


def _checksum(words: list[str]) -> int:
    """A CRC-32."""
    return int(words[0])


def _median(words: list[str]) -> float:
    """The middle one of some times in seconds."""
    return statistics.median(between(float(word), 1e-12, ANSWER_SECONDS) for word in words)


def _executed(words: list[str]) -> tuple[str, ...]:
    """The levels that a device executes: of those asked for, one at least."""
    found = tuple(name for name, runs in (word.split("=") for word in words) if int(runs) and name in targets.TARGETS)
    between(len(found), 1, len(targets.TARGETS))
    return found


def _rate(words: list[str]) -> float:
    """Something per second."""
    return between(float(words[0]), 1.0, 1e18)


def _load(text: str) -> float:
    """The processes that ran in the last minute, by /proc/loadavg; 0 where it does not say."""
    found = re.match(r"\d{1,6}(\.\d{1,6})?\b", text, re.ASCII)
    return float(found[0]) if found else 0.0
