"""Builds libraries and programs: compiles units in parallel, links, caches by content.

The pipeline in this file:   units -> objects -> library (or program) in <root>/<name>-<platform>-<hash>/

The hash covers every input (source and header text, flags, compiler version, target), so a build never needs to be
invalidated. It is made by one process, the others wait for it, and appears by one rename. Its spec.json has the hash of
the library: one that is damaged, or that another user could have written, is made anew, in the cache and in folders
that a user names. A failed build keeps its sources and its log. Where there is no compiler, what any compiler made of
the same sources serves, before one is fetched.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bitgen import data, store, targets, uses
from bitgen.compile import precompiled
from bitgen.compile.compiler import Compiler, NoCompilerError, find_compiler, installed
from bitgen.errors import BitgenError, CompileError
from bitgen.spec import Listener, Platform, Progress
from bitgen.targets import platform_of

COMMON_FLAGS = (
    "-std=c11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-strict-aliasing",
    "-fPIC", "-fvisibility=hidden", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Wno-unused-function", "-Wno-psabi",
    "-Wno-unused-command-line-argument",  # every command carries the flags of the link as well
    "-I.",  # headers are included by their path from the root of the source tree
)  # fmt: skip
_FIRST_LINK = " (the first time for a system, with its own libraries: up to two minutes)"
"""zig builds the C library of a target when it first links for it."""
SANITIZED = ("-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O0")


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
    sanitize: str | None = None  # what clang's -fsanitize takes, as "address,undefined": for tests
    listener: Listener = lambda *_: None  # told of each stage
    stage: str = "compiling kernels"  # what compiling is called


@dataclass(frozen=True)
class Artefact:
    """A finished build: its folder and the library or program in it."""

    folder: Path
    path: Path
    spec: Mapping[str, object]

    def to_json(self) -> dict[str, object]:
        """What `bitgen build --json` prints; the folder's spec.json has more."""
        facts = {key: self.spec[key] for key in ("arch", "system", "compiler", "sha256")}
        levels = self.spec.get("levels")
        return {
            "folder": str(self.folder),
            "library": str(self.path),
            "bytes": self.path.stat().st_size,
            "levels": list(levels) if isinstance(levels, Mapping) else [],
            **facts,
        }


def build(
    name: str,
    sources: Mapping[str, str],
    units: Sequence[Unit],
    spec: Mapping[str, object],
    options: BuildOptions | None = None,
) -> Artefact:
    """Compile `units` of the source tree `sources` (file name -> text) and link them.

    The product is a shared library, or a program that needs only the system's own libraries (on Linux a static one).
    Its folder is named after `name`, whatever that is: a file's word for itself. `spec` is recorded in the build's
    spec.json. CompileError gives the failing command, the folder of the kept sources, and the first lines of the
    compiler's errors.
    """
    options = options or BuildOptions()
    tell = options.listener
    tell("looking for a C compiler", 0, 0)
    root, inputs = options.root or data.cached("build"), _inputs(sources, units, options)
    platform = options.platform
    try:
        compiler = installed(platform)
    except NoCompilerError:
        if found := _built_before(root, store.slug(name), inputs):
            return found
        tell("fetching a C compiler", 0, 0)
        compiler = find_compiler(platform)
    if options.program and compiler.zig and platform.system.name == "linux":
        platform = platform_of(platform.arch, "musl")  # zig cannot link glibc statically
    sanitizers = (f"-fsanitize={options.sanitize}", *SANITIZED) if options.sanitize else ()
    flags = (*compiler.target_flags(platform), *COMMON_FLAGS, *sanitizers)
    product, link = _link(platform, flags, options)
    folder = root / f"{store.slug(name)}-{platform}-{_digest([compiler.version, flags, link, inputs])}"

    def make() -> None:
        with _publishing(folder) as work:
            write_sources(work, sources)
            log = _compile_all(compiler, flags, units, sources, work, platform.arch, partial(tell, options.stage))
            objects = [u.object for u in units]
            tell(f"linking{_FIRST_LINK if compiler.zig else ''}", 0, 0)
            log += compiler.run([*objects, *link], work, f"linking {product}")
            (work / "build.log").write_text(log, encoding="utf-8")
            for file in objects:
                (work / file).unlink()
            made_by = {"compiler": compiler.version, "flags": list(flags), "inputs": inputs}
            _finish(work, product, {**spec, "arch": platform.arch, "system": platform.system.name, **made_by})

    data.once(folder, lambda: opened(folder) is not None, make, partial(tell, data.WAITING, 0, 0))
    built = opened(folder)
    if built is None:
        raise BitgenError(f"{folder} was damaged or removed as soon as it was built; build again")
    if options.root is None:
        uses.touch(folder)
    return built


def _finish(work: Path, product: str, spec: Mapping[str, object]) -> None:
    """Make of a work folder what `opened` takes: nobody else may write to it, whatever the umask is."""
    (work / product).chmod((work / product).stat().st_mode & ~0o022)
    record = {**spec, "product": product, "sha256": store.sha256(work / product)}
    (work / "spec.json").write_text(json.dumps(record, indent=1, default=str) + "\n", encoding="utf-8")


def opened(folder: Path) -> Artefact | None:
    """The build in a folder; None where there is none, it is not what was built, or others may write to it."""
    try:
        spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
        path = folder / Path(spec["product"]).name
        if store.is_private(folder) and store.is_private(path) and store.sha256(path) == spec["sha256"]:
            return Artefact(folder, path, spec)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        pass  # a file is missing, or no longer what it was
    return None


def _built_before(root: Path, name: str, inputs: str) -> Artefact | None:
    """The last sound build from the same inputs, by whatever compiler."""
    folders = sorted(root.glob(f"{name}-*"), key=lambda folder: folder.stat().st_mtime, reverse=True)
    return next((found for folder in folders if (found := opened(folder)) and found.spec.get("inputs") == inputs), None)


def _inputs(sources: Mapping[str, str], units: Sequence[Unit], options: BuildOptions) -> str:
    """Hash of everything that the product depends on but the compiler."""
    asked = [str(options.platform), options.program, options.sanitize, COMMON_FLAGS]
    texts = {file: hashlib.sha256(text.encode()).hexdigest() for file, text in sorted(sources.items())}
    return _digest([*asked, [(u.source, u.object, u.flags) for u in units], texts])


def _digest(inputs: Sequence[object]) -> str:
    """Hash in 16 hex digits."""
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]


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
    with data.scratch() as work:
        header = data.folder("runtime") / "kernel.h"  # the only one that kernels include
        write_sources(work, {file: text, header.name: header.read_text(encoding="utf-8")})
        compiler.run([*flags, "-S", file, "-o", "out.s"], work, f"compiling {file}")
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
    with data.scratch() as folder:
        (folder / "empty.c").touch()
        words = [*compiler.target_flags(platform), *flags, "-E", "-dM", "empty.c", "-o", "macros"]
        compiler.run(words, folder, f"asking for the macros of {platform.arch} {shlex.join(flags)}")
        return frozenset(re.findall(r"^#define (\w+)", (folder / "macros").read_text(), re.M))


def write_sources(folder: Path, sources: Mapping[str, str]) -> None:
    """Write a source tree, file name -> text; the folders that names contain are made."""
    for name, text in sources.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8", newline="\n")


@contextlib.contextmanager
def _publishing(folder: Path) -> Iterator[Path]:
    """A private folder that becomes `folder` by one rename when the context ends without an error.

    After a CompileError it is kept as <name>.failed, and the message says so; after any other error it is removed. Of
    two equal builds the first wins, where no lock kept them apart.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with store.work_folder(folder.parent) as outer:
            work = outer / "build"
            work.mkdir(0o755)
            try:
                yield work
            except CompileError as e:
                failed = folder.with_name(f"{folder.name}.failed")
                store.publish(work, failed)
                raise CompileError(f"{e}\n  sources and build.log kept in: {failed}") from e
            if opened(folder) is None:
                store.publish(work, folder)
    except OSError as e:
        where = f"{folder.parent}: {e.strerror}"
        raise BitgenError(f"cannot write to {where}; set BITGEN_CACHE to a writable folder or pass -o") from e


def _compile_all(
    compiler: Compiler,
    flags: Sequence[str],
    units: Sequence[Unit],
    sources: Mapping[str, str],
    work: Path,
    arch: str,
    progress: Progress,
) -> str:
    """Compile all units to objects in `work`, a compiler process for each CPU of this process. Returns the log."""
    progress(0, len(units))
    headers = "".join(text for file, text in sorted(sources.items()) if file.endswith(".h"))
    objects = data.cached("objects")

    def arguments(unit: Unit) -> list[str]:
        return [*flags, *unit.flags, "-c", unit.source, "-o", unit.object]

    def cached(unit: Unit) -> Path:
        key = json.dumps([compiler.version, arguments(unit), sources[unit.source], headers])
        return objects / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.o"

    missing = [((*flags, *unit.flags), sources[unit.source]) for unit in units if not cached(unit).exists()]
    parsed = precompiled.headers(arch, missing, compiler)

    def compile_one(unit: Unit) -> str:
        if _restore(cached(unit), work / unit.object):
            return f"{unit.object}: from the object cache\n"
        header = parsed.get((*flags, *unit.flags), ())
        log = compiler.run([*header, *arguments(unit)], work, f"compiling {unit.source}")
        _keep(work / unit.object, cached(unit))
        return log

    logs = []
    with ThreadPoolExecutor(targets.default_threads()) as pool:
        for done, log in enumerate(pool.map(compile_one, units), 1):
            logs.append(log)
            progress(done, len(units))
    return "".join(logs)


def _keep(made: Path, cached: Path) -> None:
    """Copy an object into the cache, its hash behind it; a cache that cannot be written is not an error."""
    raw = made.read_bytes()
    with contextlib.suppress(BitgenError), data.replacing(cached) as part:
        part.write_bytes(raw + hashlib.sha256(raw).digest())


def _restore(cached: Path, made: Path) -> bool:
    """Whether an object is in the cache and as it was put there; then it is copied to `made`."""
    try:
        raw = cached.read_bytes()
    except OSError:
        return False
    size = len(raw) - hashlib.sha256().digest_size
    if hashlib.sha256(raw[:size]).digest() != raw[size:]:
        return False
    made.write_bytes(raw[:size])
    uses.touch(cached)
    return True
