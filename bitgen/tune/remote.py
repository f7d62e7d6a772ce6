"""Tuning on a device behind SSH: a static program of candidate kernels runs there, the search runs here.

    Device     ssh: finds a folder that may execute, brings a program, runs it, takes it away when it ends
    Tuner      the conversation with that program, runtime/programs/tuner.c, over its stdin and stdout
    RemoteLab  verifies and times by it

One connection serves one program. Verification sends few rows of weights (all others are 0) and gets a checksum of
all results, so that a slow link is no hindrance: some hundred kilobytes for a layout of a large matrix.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shlex
import signal
import statistics
import struct
import subprocess
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from bitgen import targets
from bitgen.compile import clang, library
from bitgen.compile.clang import BuildOptions
from bitgen.compile.library import Level
from bitgen.errors import RemoteError, UnsupportedError
from bitgen.kernels import plan
from bitgen.kernels.layout import Bytes, Codes
from bitgen.spec import GemmShape, KernelSpec, Layout, Progress
from bitgen.tune import lab
from bitgen.tune.lab import PREFILL_TOKENS, REPS, VERIFY_TOKENS

CONNECT_SECONDS = 60
ANSWER_SECONDS = 600  # a prefill kernel in portable C on a slow core takes its time
OPTIONS = ("BatchMode=yes", "ConnectTimeout=15", "ServerAliveInterval=15", "ServerAliveCountMax=4")
SYSTEM, PROGRAM = "linux", "tuner.c"  # whatever this host is
GREETING = "bitgen-tuner 1"
BAND = 64  # rows of each band of weights that verification fills: at the top, in the middle, at the bottom
RUN = 64  # so many equal bytes of packed weights, or more, travel as one

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
"""What the device's sh runs; its stdin is the size of a program, the program, and what the program reads."""

ADVICE = {
    "Permission denied (": "bitgen asks for no password: load a key into an agent (ssh-add) or use --ssh 'ssh -i KEY'",
    "Host key verification failed": "connect once by hand with ssh and accept the host's key",
    "Could not resolve": "check the name, or give it a Host entry in ~/.ssh/config",
    "Connection refused": "no SSH server listens there: check the port, --remote user@host:port",
    "timed out": "check the address, and that the device is on",
    "No route to host": "check the address, and that the device is on",
    "may execute": "let TMPDIR name one there",
}
"""What to do about the words of ssh or of the script."""


class Tuner:
    """A program in another process, or on another machine, that answers requests: runtime/programs/tuner.c."""

    def __init__(self, command: Sequence[str], name: str) -> None:
        self.name = name
        self._stage = "cannot connect"
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._complaints
            )
        except OSError as e:
            raise RemoteError(f"cannot run {command[0]}: {e.strerror}; install OpenSSH or name it: --ssh") from e
        assert self._process.stdin and self._process.stdout
        self._input, self._output = self._process.stdin, self._process.stdout.fileno()
        self._ready = selectors.DefaultSelector()
        self._ready.register(self._output, selectors.EVENT_READ)
        self._pending = b""

    def greet(self) -> None:
        """Wait for the program's first line."""
        self._stage = "the program does not start there (was it made for that architecture? --arch names another)"
        line = self.receive_line(CONNECT_SECONDS)
        if line != GREETING:
            raise RemoteError(f"{self.name}: {self._stage}; it says {line!r}")
        self._stage = "lost midway; the same command goes on after the last matrix decided"

    def request(self, line: str, *payload: bytes) -> list[str]:
        """Send one line and its payload; the words of the answer. RemoteError when there is none or it is an error."""
        self.send(f"{line}\n".encode(), *payload)
        status, _, rest = self.receive_line().partition(" ")
        if status != "ok":
            raise RemoteError(f"{self.name}: `{line}` failed there: {rest or status}")
        return rest.split()

    def file(self, path: str) -> str:
        """The text of a file there; "" when there is none."""
        size = int(self.request(f"file {path}")[0])
        deadline = time.monotonic() + ANSWER_SECONDS
        while len(self._pending) < size:
            self._receive(deadline)
        text, self._pending = self._pending[:size], self._pending[size:]
        return text.decode(errors="replace")

    def send(self, *data: bytes) -> None:
        """Write to the program."""
        try:
            for each in data:
                self._input.write(each)
            self._input.flush()
        except OSError:  # a broken pipe
            raise self._ended() from None

    def receive_line(self, seconds: float = ANSWER_SECONDS) -> str:
        """The next line that the program says."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self._pending:
            self._receive(deadline)
        line, _, self._pending = self._pending.partition(b"\n")
        return line.decode(errors="replace").rstrip("\r")

    def close(self) -> None:
        """End the program: it leaves when its input ends."""
        for pipe in (self._input, self._process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        try:
            self._process.wait(timeout=10)
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
        """Why the program is gone, in its own last words."""
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            code = 0
        self._complaints.seek(0)
        text = self._complaints.read().decode(errors="replace")
        said = "; ".join(line.strip() for line in text.splitlines()[-3:] if line.isprintable() and line.strip())[:400]
        number = -code if code < 0 else code - 128  # as Popen tells a signal, and as a shell does
        if not said and number in {s.value for s in signal.Signals}:
            said = f"it was ended by {signal.Signals(number).name}"
        advice = "".join(f"\n  {what}" for words, what in ADVICE.items() if words in text)
        return RemoteError(f"{self.name}: {self._stage}: {said or f'exit code {code}'}{advice}")


class Device:
    """A `Site` behind SSH: `target` is [user@]host[:port] or a Host of the user's ssh configuration.

    `ssh` is the command to use with its options (default: BITGEN_SSH, else ssh), `arch` what to compile for
    (default: what `uname -m` there says).
    """

    def __init__(self, target: str, arch: str | None = None, ssh: str | None = None) -> None:
        self._target = target
        self._command = [*ssh_command(target, ssh), f"exec sh -c {shlex.quote(SCRIPT)}"]
        with contextlib.closing(self._connect()) as tuner:
            self.arch = arch or _arch(tuner.name)
            self._platform = targets.platform_of(self.arch, SYSTEM)
            levels = [Level.of_kernels(t.isa, ()) for t in targets.levels(self._platform)]
            spec = {"purpose": "finds what a device executes"}
            probe = library.assemble("tuner", levels, spec, BuildOptions(self._platform, PROGRAM))
            _bring(tuner, probe.path)
            self.isas = tuple(name for name, runs in (x.split("=") for x in tuner.request("levels")) if int(runs))
            self.cpus = int(tuner.request("cpus")[0])
            self.cpu = plan.cpu_name(tuner.file("/proc/cpuinfo"))
            self.load = float((tuner.file("/proc/loadavg").split() or ["0"])[0])
        flags = [flag for flag in probe.spec["flags"] if flag not in clang.COMMON_FLAGS]  # type: ignore[attr-defined]
        self.compiler = " ".join((str(probe.spec["compiler"]), *flags))
        self.basis = f"measured on {self.cpu} by ssh"

    def lab(self, isa: str, specs: Sequence[KernelSpec], threads: int, progress: Progress) -> RemoteLab:
        """A `Lab` of the candidates of one shape, running there."""
        if isa not in self.isas:
            raise UnsupportedError(f"{self._target} cannot execute {isa!r}, but {', '.join(self.isas)}")
        built = library.for_kernels(isa, specs, BuildOptions(self._platform, PROGRAM, progress=progress))
        tuner = self._connect()
        try:
            _bring(tuner, built.path)
            return RemoteLab(tuner, specs, threads)
        except BaseException:
            tuner.close()
            raise

    def _connect(self) -> Tuner:
        """The script, waiting for a program; the tuner's name tells the system, too."""
        tuner = Tuner(self._command, self._target)
        try:
            line = ""
            while not line.startswith("bitgen: "):  # what a login says before is not for us
                line = tuner.receive_line(CONNECT_SECONDS)
        except BaseException:
            tuner.close()
            raise
        tuner.name = f"{self._target} ({line.removeprefix('bitgen: ')})"
        return tuner


def ssh_command(target: str, ssh: str | None = None) -> list[str]:
    """The command that connects to [user@]host[:port], up to what to run there; it never asks anything."""
    found = re.fullmatch(r"(?P<user>[^@:]+@)?(\[(?P<v6>[^]]+)\]|(?P<host>[^:@]+))(:(?P<port>\d+))?", target)
    if found is None or target.startswith("-"):
        raise RemoteError(f"--remote {target!r} is not [user@]host[:port]")
    options = [word for option in OPTIONS for word in ("-o", option)]
    port = ["-p", found["port"]] if found["port"] else []
    host = (found["user"] or "") + (found["v6"] or found["host"])
    return [*shlex.split(ssh or os.environ.get("BITGEN_SSH") or "ssh"), "-T", *options, *port, host]


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
    """Hand a program to the script and wait until it greets."""
    data = program.read_bytes()
    tuner.send(f"{len(data)}\n".encode(), data)
    tuner.greet()


class RemoteLab:
    """The candidates of one shape in a tuner: a `Lab`.

    Weights of verification are 0 but for three bands of rows: what is 0 packs into equal bytes, whatever the layout.
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
        """Random and extreme activations against the oracle, all threads."""
        n = VERIFY_TOKENS[spec.op]
        if spec.layout != self._layout:
            packed = self._trial.pack(spec.layout)
            self._tuner.request(f"weights {packed.size}", *spans(packed))
            self._layout = spec.layout
        for i, y in enumerate(self._expected):
            answer = self._tuner.request(f"verify {self._index[spec]} {i * self._tokens} {n} {self._threads}")
            if int(answer[0]) != zlib.crc32(y[:n].tobytes()):
                raise lab.wrong(spec)

    def seconds(self, spec: KernelSpec, threads: int | None = None) -> float:
        """Median seconds of one call, on weights from memory."""
        n, reps = PREFILL_TOKENS if spec.op == "gemm" else 1, REPS[spec.op]
        at, copies = self._stream.place(spec, reps)
        arguments = (self._index[spec], at, copies, n, threads or self._threads, reps)
        return statistics.median(map(float, self._tuner.request(f"time {' '.join(map(str, arguments))}")))

    def bandwidth(self) -> float:
        """Sequential read bandwidth in bytes per second."""
        return float(self._tuner.request(f"bandwidth {self._threads}")[0])

    def peak(self) -> float:
        """Peak integer operations per second."""
        return float(self._tuner.request(f"peak {self._threads}")[0])

    def weight_bytes(self, spec: KernelSpec) -> int:
        """Packed bytes of the matrix."""
        return lab.weight_bytes(spec)

    def close(self) -> None:
        """End the program there."""
        self._tuner.close()


def banded(shape: GemmShape, rng: np.random.Generator) -> Codes:
    """Codes int8 [m, k] that are 0 but for three bands of random rows: at the top, in the middle, at the bottom."""
    codes = np.zeros((shape.m, shape.k), np.int8)
    for top in (0, shape.m // 2, max(0, shape.m - BAND)):
        band = codes[top : top + BAND]
        band[:] = rng.integers(-1, 2, band.shape, np.int8)
    return codes


def spans(data: Bytes) -> Iterator[bytes]:
    """Bytes in the tuner's short form: (u64 n, n bytes, u64 times, one byte to repeat), until all are told."""
    edges = np.flatnonzero(np.diff(data)) + 1
    starts, ends = np.concatenate([[0], edges]), np.concatenate([edges, [data.size]])
    long = ends - starts >= RUN
    at = 0
    for start, end in zip(starts[long].tolist(), ends[long].tolist(), strict=True):
        yield struct.pack("<Q", start - at) + data[at:start].tobytes() + struct.pack("<QB", end - start, data[start])
        at = end
    if at < data.size:
        yield struct.pack("<Q", data.size - at) + data[at:].tobytes() + struct.pack("<QB", 0, 0)
