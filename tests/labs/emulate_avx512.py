"""Runs a static x86-64 Linux program on an emulated CPU with AVX-512 VNNI and VBMI, which the host need not have.

Bochs 2.7 emulates AVX-512 VNNI; Bochs 3 also AVX-VNNI and AMX. The newest CPU it knows is taken.

    python tests/labs/emulate_avx512.py PROGRAM [ARGUMENT...] < input > output

qemu and valgrind do not know AVX-512; Bochs does, but it emulates a whole computer. So the computer is made here:
a ROM that starts the CPU (machine/rom.S), a disk that holds the memory image, and in place of an operating system
machine/machine.c, which answers the system calls of one program. It starts in a fraction of a second.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bitgen import targets
from bitgen.compile import clang
from bitgen.data import cache_root

SOURCES = Path(__file__).parent / "machine"
INSTALL = "apt-get install --no-install-recommends bochs bochs-term"
CPUS = ("sapphire_rapids", "corei7_icelake_u")  # best first: the first has AMX and AVX-VNNI too

PAGE, MEMORY = 4096, 256 << 20  # machine.c knows both
BASE = 1 << 20  # where the disk is read to: the machine, the program, its files and its stack; then comes the heap
PROGRAMS = 2 << 20  # the machine ends before it, and no linker puts a program lower
STACK = 1 << 20
ROM_END = 1 << 32
BLOCK, CYLINDER = 256 * 512, 16 * 63 * 512  # bytes that rom.S reads at once; a disk is whole cylinders
AT_PHDR, AT_PHENT, AT_PHNUM, AT_PAGESZ, AT_ENTRY, AT_RANDOM = 3, 4, 5, 6, 9, 25  # of Linux's auxiliary vector

COMPILE = (
    *("-std=gnu11", "-O2", "-fPIE", "-fno-builtin", "-fno-stack-protector", "-fvisibility=hidden"),
    *("-mno-red-zone", "-mgeneral-regs-only"),
)

CONFIGURATION = f"""\
display_library: term
cpu: model={{cpu}}, ips=10000000, reset_on_triple_fault=0
megs: {MEMORY >> 20}
romimage: file=rom, address={{rom:#x}}
ata0-master: type=disk, path=disk, mode=flat, cylinders=0
parport1: enabled=1, file=stdout
parport2: enabled=1, file=stderr
sound: waveoutdrv=dummy, waveindrv=dummy, midioutdrv=dummy
pci: enabled=0
clock: sync=none
log: log
panic: action=fatal
error: action=report
info: action=report
"""


class EmulationError(Exception):
    """The program did not end well on the emulated CPU: it crashed, ran out of time, or its status is not 0."""


@functools.cache
def available() -> str | None:
    """None when programs can be emulated here, else what is missing and how to get it."""
    bochs = _bochs()
    if bochs is None:
        return f"no Bochs, which emulates AVX-512 ({INSTALL})"
    if _cpu() is None:
        return f"this Bochs has no CPU model {CPUS[-1]}; version 2.7 has ({INSTALL})"
    if "'term' not available" in _words_of(bochs, "-q", "-n", "display_library: term", "romimage: file=none"):
        return f"this Bochs has no display library 'term' ({INSTALL})"
    return None


def has_tiles() -> bool:
    """Whether the emulated CPU has AMX."""
    return available() is None and _cpu() == CPUS[0]


def run(
    program: Path,
    args: Sequence[str] = (),
    files: Mapping[str, bytes] | None = None,
    stdin: bytes = b"",
    seconds: float = 300,
) -> bytes:
    """What `program` writes to standard output, given arguments, the files it may open, and standard input.

    EmulationError with its standard error, and with the emulator's last words after a crash, when it fails.
    """
    image = _image(program, args, {"": stdin, **(files or {})})
    with tempfile.TemporaryDirectory(prefix="bitgen-machine-") as folder:
        work = Path(folder)
        _write(work, image)
        _boot(work, seconds)
        out, err = (file.read_bytes() if file.exists() else b"" for file in (work / "stdout", work / "stderr"))
        words, _, status = err.rpartition(b"exit")
        if len(status) != 1:
            log = (work / "log").read_text(errors="replace") if (work / "log").exists() else "Bochs wrote no log"
            last = "\n".join(re.findall(r">>PANIC<<.*|RIP=\w+", log)) or log[-1000:]
            raise EmulationError(f"{program.name} crashed: {err.decode(errors='replace')}\n{last}")
        if status != b"\0":
            raise EmulationError(f"{program.name} ended with {status[0]}: {words.decode(errors='replace')}")
        return out


# ---- the emulator


def _bochs() -> str | None:
    return shutil.which("bochs-bin") or shutil.which("bochs")  # Debian's `bochs` is a script around the first


@functools.cache
def _cpu() -> str | None:
    """The best CPU model of ours that this Bochs knows."""
    bochs = _bochs()
    known = _words_of(bochs, "--help", "cpu").split() if bochs else []
    return next((model for model in CPUS if model in known), None)


def _words_of(bochs: str, *args: str) -> str:
    out = subprocess.run([bochs, *args], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    return out.stdout + out.stderr


def _boot(work: Path, seconds: float) -> None:
    """Run Bochs until the machine turns itself off, or its CPU gives up, after which Bochs 3 would run for ever.

    Its text display needs a terminal, here one nobody sees.
    """
    bochs = _bochs()
    assert bochs is not None, available()
    command = [bochs, "-q", "-f", "configuration"]
    if "-rc" in _words_of(bochs, "--help"):
        (work / "commands").write_text("continue\nquit\n")  # built with its debugger, which asks what to do
        command += ["-rc", "commands"]
    ours, its = pty.openpty()
    threading.Thread(target=_drain, args=(ours,), daemon=True).start()
    try:
        environment, end = {**os.environ, "TERM": "vt100"}, time.monotonic() + seconds
        with subprocess.Popen(
            command, cwd=work, env=environment, stdin=its, stdout=its, stderr=subprocess.DEVNULL
        ) as running:
            while running.poll() is None and not _gave_up(work / "log"):
                if time.monotonic() > end:
                    running.kill()
                    raise EmulationError(f"still running on the emulated CPU after {seconds} s")
                time.sleep(0.02)
            running.kill()
    finally:
        os.close(its)  # which ends the thread


def _gave_up(log: Path) -> bool:
    """Whether the CPU has met an exception while it handled one that came while it handled one."""
    return log.exists() and b"3rd (" in log.read_bytes()


def _drain(terminal: int) -> None:
    """Read what is drawn, so that the emulator never waits."""
    try:
        while os.read(terminal, PAGE):
            pass
    except OSError:  # nobody holds the other end any more
        pass
    os.close(terminal)


# ---- the machine


@dataclass(frozen=True)
class Elf:
    """The parts of an ELF file that are loaded: (address, bytes, size in memory), and its headers."""

    content: bytes
    entry: int
    parts: tuple[tuple[int, bytes, int], ...]
    headers: tuple[int, int]  # address and count of the program headers

    @classmethod
    def read(cls, path: Path) -> Elf:
        content = path.read_bytes()
        entry, table = struct.unpack_from("<QQ", content, 24)
        size, count = struct.unpack_from("<HH", content, 54)
        parts, where = [], 0
        for at in range(table, table + size * count, size):
            kind, _, offset, address, _, in_file, in_memory = struct.unpack_from("<IIQQQQQ", content, at)
            if kind == 1:
                parts.append((address, content[offset : offset + in_file], in_memory))
                if offset <= table < offset + in_file:
                    where = address + table - offset
        return cls(content, entry, tuple(parts), (where, count))

    def section(self, name: str) -> bytes:
        (table,) = struct.unpack_from("<Q", self.content, 40)
        size, count, names = struct.unpack_from("<HHH", self.content, 58)
        rows = [struct.unpack_from("<IIQQQQ", self.content, table + size * i) for i in range(count)]
        for row in rows:
            at = rows[names][4] + row[0]
            if self.content[at : self.content.index(b"\0", at)] == name.encode():
                return self.content[row[4] : row[4] + row[5]]
        raise KeyError(name)


@functools.cache
def _machine() -> Elf:
    """The compiled machine: position-independent, without relocations."""
    compiler = clang.find_compiler(targets.platform_of("x86_64"))
    flags = compiler.target_flags(targets.platform_of("x86_64", "musl" if compiler.zig else None))
    sources = [SOURCES / "machine.c", SOURCES / "rom.S"]
    stamp = repr((compiler.version, flags, COMPILE, [file.read_text() for file in sources]))
    kept = cache_root() / "machine" / hashlib.sha256(stamp.encode()).hexdigest()[:16]
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            for file in sources:
                c_only = COMPILE if file.suffix == ".c" else ()
                _call(folder, *compiler.command, *flags, *c_only, "-c", str(file), "-o", f"{file.stem}.o")
            link = ("-nostdlib", "-static", "-Wl,-e,start", "-o", "machine")
            _call(folder, *compiler.command, *flags, "machine.o", "rom.o", *link)
            (Path(folder) / "machine").replace(kept)
    return Elf.read(kept)


def _call(folder: str, *command: str) -> None:
    out = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if out.returncode:
        raise EmulationError(f"the emulated machine does not compile: {' '.join(command)}\n{out.stderr}")


class Memory:
    """The machine's memory from BASE on, as it will be when the ROM has read the disk."""

    def __init__(self) -> None:
        self.bytes = bytearray()

    @property
    def end(self) -> int:
        return BASE + len(self.bytes)

    def put(self, address: int, data: bytes, size: int | None = None) -> None:
        """Place data, and zeros up to `size`, at an address."""
        size = max(size or 0, len(data))
        if not BASE <= address <= address + size <= MEMORY // 2:
            raise EmulationError(f"{size} bytes at {address:#x} do not fit into the emulated machine")
        self.bytes.extend(bytes(max(0, address + size - self.end)))
        self.bytes[address - BASE : address - BASE + len(data)] = data

    def append(self, data: bytes, size: int | None = None) -> int:
        """Place data at the next page; its address."""
        address = -(-self.end // PAGE) * PAGE
        self.put(address, data, size)
        return address


@dataclass(frozen=True)
class Image:
    """All that the ROM needs: what to load, where to enter the machine, and what to tell it."""

    memory: bytes
    start: int
    boot: int


def _image(program: Path, args: Sequence[str], files: Mapping[str, bytes]) -> Image:
    """Memory with the machine, the program, its files, and the stack it starts with. The first file is its input."""
    memory, machine, elf = Memory(), _machine(), Elf.read(program)
    shift = BASE - min(address for address, _, _ in machine.parts) // PAGE * PAGE
    for address, data, size in machine.parts:
        memory.put(address + shift, data, size)
    if memory.end > PROGRAMS or min(address for address, _, _ in elf.parts) < PROGRAMS:
        raise EmulationError(f"{program} is not a static program linked to run at a fixed address above {PROGRAMS:#x}")
    for part in elf.parts:
        memory.put(*part)
    table = b""
    for name, data in files.items():
        table += struct.pack("<3Q", memory.append(name.encode() + b"\0"), memory.append(data), len(data))
    top = memory.append(b"", STACK) + STACK
    words = _stack(memory, elf, [program.name, *args])
    memory.put(top - len(words), words)
    boot = memory.append(b"", 32 + len(table))
    memory.put(boot, struct.pack("<4Q", elf.entry, top - len(words), memory.end + PAGE, len(files)) + table)
    return Image(bytes(memory.bytes), machine.entry + shift, boot)


def _stack(memory: Memory, elf: Elf, args: Sequence[str]) -> bytes:
    """The stack a Linux program starts with: argc, argv, an empty environment, the auxiliary vector."""
    pointers = [memory.append(arg.encode() + b"\0") for arg in args]
    headers, count = elf.headers
    auxiliary = {AT_PHDR: headers, AT_PHENT: 56, AT_PHNUM: count, AT_PAGESZ: PAGE, AT_ENTRY: elf.entry}
    auxiliary |= {AT_RANDOM: memory.append(bytes(16)), 0: 0}
    words = [len(args), *pointers, 0, 0]
    for key, value in auxiliary.items():
        words += [key, value]
    words += [0] * (len(words) % 2)
    return struct.pack(f"<{len(words)}Q", *words)


def _write(work: Path, image: Image) -> None:
    """The files that Bochs reads: configuration, ROM and disk."""
    blocks = -(-len(image.memory) // BLOCK)
    disk = -(-blocks * BLOCK // CYLINDER) * CYLINDER
    (work / "disk").write_bytes(image.memory.ljust(disk, b"\0"))
    rom = bytearray(_machine().section(".rom"))
    struct.pack_into("<4I", rom, len(rom) - 32, blocks, BASE, image.start, image.boot)
    (work / "rom").write_bytes(rom)
    (work / "configuration").write_text(CONFIGURATION.format(cpu=_cpu(), rom=ROM_END - len(rom)))


if __name__ == "__main__":
    try:
        sys.stdout.buffer.write(run(Path(sys.argv[1]), sys.argv[2:], stdin=sys.stdin.buffer.read()))
    except EmulationError as e:
        sys.exit(str(e))
