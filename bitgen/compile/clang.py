"""The C compiler, which only this file runs: finds one, compiles units in parallel, links, caches by content.

The pipeline in this file:   units -> objects -> library (or program) in <root>/<name>-<platform>-<hash>/

The hash covers every input (source and header text, flags, compiler version, target), so a build never needs to be
invalidated. It happens in a private folder and is published by one rename: two processes that build the same thing do
not disturb each other. A failed build keeps its sources and its log.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from bitgen import data, targets
from bitgen.compile import precompiled
from bitgen.errors import BitgenError, CompileError
from bitgen.spec import Platform, Progress
from bitgen.targets import is_host, platform_of

OLDEST_CLANG = 14

COMMON_FLAGS = (
    "-std=c11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-strict-aliasing",
    "-fPIC", "-fvisibility=hidden", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Wno-unused-function", "-Wno-psabi",
    "-Wno-unused-command-line-argument",  # every command carries the flags of the link as well
    "-I.",  # headers are included by their path from the root of the source tree
)  # fmt: skip
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O0")
BASELINE = {"x86_64": ("-march=x86-64",), "arm64": ("-mcpu=generic",), "riscv64": ("-march=rv64gc",)}

INSTALL_HINT = """no C compiler found. Any one of these installs one:
  pip install ziglang            (a full clang in a Python package, no system package needed)
  apt-get install clang          (Debian, Ubuntu)
  dnf install clang              (Fedora)
or name yours:  BITGEN_CC=/path/to/clang"""


@dataclass(frozen=True)
class Compiler:
    """A clang: the command that runs it, and its version, which is part of every cache key."""

    command: tuple[str, ...]
    version: str
    zig: bool

    def target_flags(self, platform: Platform) -> tuple[str, ...]:
        """Flags that select a platform and its architecture's baseline instruction set."""
        if self.zig:  # without -target zig tunes for this host; -g0: no paths of this machine
            return ("-target", platform.triple, "-fno-sanitize=undefined", "-g0", *platform.system.flags)
        if is_host(platform):
            return BASELINE[platform.arch]
        sysroot = os.environ.get("BITGEN_SYSROOT", "/")
        return (f"--target={platform.triple}", f"--sysroot={sysroot}", "-fuse-ld=lld", *BASELINE[platform.arch])


@dataclass(frozen=True)
class Unit:
    """One translation unit: a file of the build's source tree and the flags it needs beyond the common ones."""

    source: str  # name in the source tree
    object: str  # name of the object file
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class BuildOptions:
    """What to build from the sources, for which platform, and where to put it."""

    platform: Platform = field(default_factory=platform_of)  # default: this host
    program: str | None = None  # file of runtime/programs with `main`; None: a shared library
    root: Path | None = None  # parent of the build's folder; None: the cache
    sanitize: bool = False  # AddressSanitizer and UBSan, for tests
    progress: Progress | None = None  # (units compiled, units)


@dataclass(frozen=True)
class Artefact:
    """A finished build: its folder and the library or program in it."""

    folder: Path
    path: Path
    spec: Mapping[str, object]


@functools.cache
def find_compiler(platform: Platform) -> Compiler:
    """The compiler for a platform: $BITGEN_CC, else a system clang of 14 or newer, else ziglang.

    A system clang compiles for another architecture only if BITGEN_SYSROOT names that architecture's headers and
    libraries. Otherwise, and for another system always, it is ziglang, which carries those of every target.
    CompileError says what to install.
    """
    named = os.environ.get("BITGEN_CC")
    if named:
        compiler = _probe(tuple(shlex.split(named)))
        if compiler is None:
            raise CompileError(f"BITGEN_CC={named!r} does not run as a clang of {OLDEST_CLANG} or newer")
        return compiler
    native = is_host(platform) and platform.system.clang != "never"
    serves = native or ("BITGEN_SYSROOT" in os.environ and platform.system.clang == "sysroot")
    names = ("clang", *(f"clang-{n}" for n in range(30, OLDEST_CLANG - 1, -1))) if serves else ()
    for command in (*((name,) for name in names), (sys.executable, "-m", "ziglang", "cc")):
        compiler = _probe(command)
        if compiler is not None:
            return compiler
    raise CompileError(INSTALL_HINT)


def _probe(command: tuple[str, ...]) -> Compiler | None:
    """The compiler behind a command, or None when it is absent, too old or not a clang."""
    if shutil.which(command[0]) is None:
        return None
    try:
        out = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"clang version (\d+)\.\S*", out.stdout)
    if out.returncode != 0 or found is None or int(found.group(1)) < OLDEST_CLANG:
        return None
    if "zig" not in " ".join(command):
        return Compiler(command, found.group(0), zig=False)
    own = importlib.metadata.version("ziglang") if command[0] == sys.executable else " ".join(command)
    return Compiler(command, f"{found.group(0)} of ziglang {own}", zig=True)  # zig carries headers and libraries


def build(
    name: str,
    sources: Mapping[str, str],
    units: Sequence[Unit],
    spec: Mapping[str, object],
    options: BuildOptions | None = None,
) -> Artefact:
    """Compile `units` of the source tree `sources` (file name -> text) and link them.

    The product is a shared library, or a program that needs only the system's own libraries (on Linux a static one).
    `spec` is recorded in the build's spec.json. CompileError gives the failing command, the folder of the kept sources,
    and the first lines of the compiler's errors.
    """
    options = options or BuildOptions()
    compiler, platform = find_compiler(options.platform), options.platform
    if options.program and compiler.zig and platform.system.name == "linux":
        platform = platform_of(platform.arch, "musl")  # zig cannot link glibc statically
    flags = (*compiler.target_flags(platform), *COMMON_FLAGS, *(SANITIZERS if options.sanitize else ()))
    product, link = _link(platform, flags, options)
    root = options.root or data.cache_root() / "build"
    folder = root / f"{name}-{platform}-{_digest(compiler, flags, link, units, sources)}"
    if not (folder / product).exists():
        with _publishing(folder) as work:
            write_sources(work, sources)
            made_by = {"compiler": compiler.version, "flags": list(flags)}
            record = {**spec, "arch": platform.arch, "system": platform.system.name, **made_by}
            (work / "spec.json").write_text(json.dumps(record, indent=1, default=str) + "\n")
            log = _compile_all(compiler, flags, units, sources, work, platform.arch, options.progress)
            objects = [u.object for u in units]
            log += _run(compiler, [*objects, *link], work, f"linking {product}")
            (work / "build.log").write_text(log)
            for file in objects:
                (work / file).unlink()
    return Artefact(folder, folder / product, json.loads((folder / "spec.json").read_text()))


def _digest(
    compiler: Compiler, flags: Sequence[str], link: Sequence[str], units: Sequence[Unit], sources: Mapping[str, str]
) -> str:
    """Hash, in 16 hex digits, of everything that the product depends on."""
    inputs = {
        "compiler": compiler.version,
        "flags": flags,
        "link": link,
        "units": [(u.source, u.object, u.flags) for u in units],
        "sources": {file: hashlib.sha256(text.encode()).hexdigest() for file, text in sorted(sources.items())},
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def _link(platform: Platform, flags: Sequence[str], options: BuildOptions) -> tuple[str, list[str]]:
    """The file name of what is built, and the arguments that link it."""
    system = platform.system
    product = f"bitgen-runner{system.suffix}" if options.program else system.library
    program = () if options.sanitize else system.program  # sanitizers cannot be linked statically
    kind = program if options.program else system.shared
    return product, [*flags, *kind, "-pthread", "-o", product]


def assembly(isa: str, file: str, text: str, system: str | None = None) -> str:
    """The assembly of one kernel's source, compiled with the flags that an ISA level has in libraries of a system."""
    target = targets.target(isa)
    platform = platform_of(None if target.arch == "any" else target.arch, system)
    compiler = find_compiler(platform)
    flags = (*compiler.target_flags(platform), *COMMON_FLAGS, *target.flags)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        header = data.folder("runtime") / "kernel.h"  # the only one that kernels include
        write_sources(work, {file: text, header.name: header.read_text(encoding="utf-8")})
        _run(compiler, [*flags, "-S", file, "-o", "out.s"], work, f"compiling {file}")
        return (work / "out.s").read_text()


@functools.cache
def macros(platform: Platform, flags: tuple[str, ...] = (), cpu: str | None = None) -> frozenset[str]:
    """Names of the macros that the compiler predefines for flags, or for a CPU: they say which instructions it has.

    CompileError when the compiler does not know the CPU.
    """
    compiler = find_compiler(platform)
    if cpu is not None:
        option = "cpu" if platform.arch == "arm64" else "arch"
        flags = (*flags, f"-m{option}={cpu.replace('-', '_') if compiler.zig else cpu}")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "empty.c").touch()
        words = [*compiler.target_flags(platform), *flags, "-E", "-dM", "empty.c", "-o", "macros"]
        _run(compiler, words, Path(folder), f"asking for the macros of {platform.arch} {shlex.join(flags)}")
        return frozenset(re.findall(r"^#define (\w+)", (Path(folder) / "macros").read_text(), re.M))


def write_sources(folder: Path, sources: Mapping[str, str]) -> None:
    """Write a source tree, file name -> text; the folders that names contain are made."""
    for name, text in sources.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8", newline="\n")


@contextlib.contextmanager
def _publishing(folder: Path) -> Iterator[Path]:
    """A private folder that becomes `folder` by one rename when the context ends without an error.

    After a CompileError it is kept as <name>.failed, and the message says so; after any other error it is removed.
    """
    work = _fresh_folder(folder)
    try:
        yield work
        _publish(work, folder)
    except CompileError as e:
        raise CompileError(f"{e}\n  sources and build.log kept in: {_keep_failed(work, folder)}") from e
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def _fresh_folder(folder: Path) -> Path:
    """An empty folder beside `folder`, so that the closing rename stays on one file system."""
    root = folder.parent
    work = root / f".{folder.name}.{os.getpid()}"
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
    except OSError as e:
        raise BitgenError(
            f"cannot write to {root}: {e.strerror}; set BITGEN_CACHE to a writable folder or pass -o"
        ) from e
    return work


def _keep_failed(work: Path, folder: Path) -> Path:
    """Move a failed build to <name>.failed for the user to inspect; it replaces an earlier failure."""
    failed = folder.with_name(f"{folder.name}.failed")
    shutil.rmtree(failed, ignore_errors=True)
    return work.rename(failed)


def _publish(work: Path, folder: Path) -> None:
    """Rename a finished build to its final name; of two equal builds the first wins."""
    try:
        work.rename(folder)
    except OSError:
        if not folder.exists():
            raise
        shutil.rmtree(work)


def _compile_all(
    compiler: Compiler,
    flags: Sequence[str],
    units: Sequence[Unit],
    sources: Mapping[str, str],
    work: Path,
    arch: str,
    progress: Progress | None,
) -> str:
    """Compile all units to objects in `work`, one compiler process per CPU at a time. Returns the log."""
    headers = "".join(text for file, text in sorted(sources.items()) if file.endswith(".h"))
    store = data.cache_root() / "objects"

    def arguments(unit: Unit) -> list[str]:
        return [*flags, *unit.flags, "-c", unit.source, "-o", unit.object]

    def cached(unit: Unit) -> Path:
        key = json.dumps([compiler.version, arguments(unit), sources[unit.source], headers])
        return store / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.o"

    missing = [((*flags, *unit.flags), sources[unit.source]) for unit in units if not cached(unit).exists()]
    parse = functools.partial(_run, compiler, what="parsing a header")
    parsed = precompiled.headers(arch, missing, compiler.version, parse)

    def compile_one(unit: Unit) -> str:
        if cached(unit).exists():
            shutil.copyfile(cached(unit), work / unit.object)
            return f"{unit.object}: from the object cache\n"
        header = parsed.get((*flags, *unit.flags), ())
        log = _run(compiler, [*header, *arguments(unit)], work, f"compiling {unit.source}")
        _cache(work / unit.object, cached(unit))
        return log

    logs = []
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for done, log in enumerate(pool.map(compile_one, units), 1):
            logs.append(log)
            if progress:
                progress(done, len(units))
    return "".join(logs)


def _cache(made: Path, cached: Path) -> None:
    """Copy an object into the cache by atomic rename; a cache that cannot be written is not an error."""
    with contextlib.suppress(BitgenError), data.replacing(cached) as part:
        cached.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(made, part)


def _run(compiler: Compiler, arguments: Iterable[str], cwd: Path, what: str) -> str:
    """Run the compiler in `cwd` and return its log; CompileError has the first lines of its errors."""
    command = [*compiler.command, *arguments]
    try:
        out = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    except OSError as e:
        raise CompileError(f"cannot run {compiler.command[0]}: {e.strerror}\n{INSTALL_HINT}") from e
    log = f"$ {shlex.join(command)}\n{out.stdout}{out.stderr}"
    if out.returncode != 0:
        (cwd / "build.log").write_text(log)
        words = "\n".join(f"  {line}" for line in out.stderr.splitlines()[:12])
        raise CompileError(f"{what} failed (exit code {out.returncode})\n  command: {shlex.join(command)}\n{words}")
    return log
