"""The C compiler, which only this file runs: finds one that works, and turns its failures into errors that help."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bitgen import data
from bitgen.compile import ziglang
from bitgen.errors import CompileError
from bitgen.spec import Platform
from bitgen.targets import is_host

OLDEST_CLANG = 14
BASELINE = {"x86_64": ("-march=x86-64",), "arm64": ("-mcpu=generic",), "riscv64": ("-march=rv64gc",)}
TIMEOUT_S = 60  # for an answer about itself

INSTALL_HINT = """no C compiler found, and none can be fetched: {reason}. Any one of these installs one:
  pip install ziglang            (a full clang in a Python package, no system package needed)
  apt-get install clang          (Debian, Ubuntu)
  dnf install clang              (Fedora)
or name yours:  BITGEN_CC=/path/to/clang"""

PROBE = "#include <stdlib.h>\n#ifndef _WIN32\n#include <pthread.h>\n#endif\nint probe(void) { return 0; }\n"
"""Compiles where the system's headers are installed; a clang alone has none."""


class NoCompilerError(CompileError):
    """There is none, and none was asked for by name."""


@dataclass(frozen=True)
class Compiler:
    """A clang: the command that runs it, and its version, which is part of every cache key."""

    command: tuple[str, ...]
    version: str
    zig: bool
    environment: Mapping[str, str] = field(default_factory=dict, hash=False)  # beside this process's own

    def target_flags(self, platform: Platform) -> tuple[str, ...]:
        """Flags that select a platform and its architecture's baseline instruction set."""
        if self.zig:  # without -target zig tunes for this host; -g0: no paths of this machine
            return ("-target", platform.triple, "-fno-sanitize=undefined", "-g0", *platform.system.flags)
        if is_host(platform):
            return BASELINE[platform.arch]
        sysroot = os.environ.get("BITGEN_SYSROOT", "/")
        return (f"--target={platform.triple}", f"--sysroot={sysroot}", "-fuse-ld=lld", *BASELINE[platform.arch])

    def run(self, arguments: Iterable[str], cwd: Path, what: str) -> str:
        """Run it in `cwd` and return the log. The last argument is the file that it writes.

        CompileError has the first lines of its errors.
        """
        command = [*self.command, *arguments]
        out = _output(command, self.environment, cwd, endless=True)
        log = f"$ {shlex.join(command)}\n{out.stdout}{out.stderr}"
        if out.returncode == 0 and (cwd / command[-1]).exists():
            return log
        ended = f"exit code {out.returncode}" + ("" if out.returncode else f", but wrote no {command[-1]}")
        (cwd / "build.log").write_text(log, encoding="utf-8")
        words = "\n".join(f"  {line}" for line in out.stderr.splitlines()[:12])
        raise CompileError(f"{what} failed ({ended})\n  command: {shlex.join(command)}\n{words}")


def find_compiler(platform: Platform) -> Compiler:
    """The compiler for a platform: an installed one, else ziglang, fetched into the cache (ziglang.py).

    CompileError says what to install, what is wrong with those that are there, and why none was fetched.
    """
    try:
        return installed(platform)
    except NoCompilerError as e:
        wrong = str(e)
    try:
        ziglang.fetch()
        return installed(platform)
    except NoCompilerError as e:
        raise NoCompilerError(INSTALL_HINT.format(reason="the one in the cache does not work") + str(e)) from None
    except CompileError as e:
        raise NoCompilerError(INSTALL_HINT.format(reason=e) + wrong) from None


@functools.cache
def installed(platform: Platform) -> Compiler:
    """The compiler for a platform that is here: $BITGEN_CC, else a system clang of 14 or newer, else ziglang.

    A system clang compiles for another architecture only if BITGEN_SYSROOT names that architecture's headers and
    libraries. Otherwise, and for another system always, it is ziglang, which carries those of every target. A clang
    that finds no headers is passed over. CompileError: $BITGEN_CC is none; NoCompilerError: there is none, with a line
    for each that does not serve.
    """
    named = os.environ.get("BITGEN_CC")
    if named:
        try:
            return probe(tuple(shlex.split(named)), platform)
        except (CompileError, ValueError) as e:
            raise CompileError(
                f"BITGEN_CC={named!r} does not run as a clang of {OLDEST_CLANG} or newer for {platform}: {e}"
            ) from None
    wrong = []
    for command in candidates(platform):
        try:
            return probe(command, platform)
        except CompileError as e:
            wrong.append(f"\n{shlex.join(command)} does not serve: {e}")
    raise NoCompilerError("".join(wrong))


def candidates(platform: Platform) -> list[tuple[str, ...]]:
    """The commands that may be a compiler for a platform, in the order in which they are tried."""
    native = is_host(platform) and platform.system.clang != "never"
    serves = native or ("BITGEN_SYSROOT" in os.environ and platform.system.clang == "sysroot")
    names = ("clang", *(f"clang-{n}" for n in range(30, OLDEST_CLANG - 1, -1))) if serves else ()
    return [*((name,) for name in names if shutil.which(name)), *((str(zig), "cc") for zig in ziglang.programs())]


def probe(command: tuple[str, ...], platform: Platform) -> Compiler:
    """The compiler behind a command; CompileError says why it is none.

    zig keeps a cache in the user's home. Where that cannot be written, it is told to use ours.
    """
    if not command:
        raise CompileError("it names no program")
    try:
        return _tried(command, platform, {})
    except CompileError:
        if not _is_zig(command) or "ZIG_GLOBAL_CACHE_DIR" in os.environ:
            raise
    folder = str(data.cached("zig"))
    return _tried(command, platform, {"ZIG_GLOBAL_CACHE_DIR": folder, "ZIG_LOCAL_CACHE_DIR": folder})


def _tried(command: tuple[str, ...], platform: Platform, environment: Mapping[str, str]) -> Compiler:
    """The compiler behind a command, once it has told its version and compiled a file that includes a header."""
    out = _output([*command, "--version"], environment)
    found = re.search(r"clang version (\d+)\.\S*", out.stdout)
    if out.returncode != 0 or found is None:
        raise CompileError(_last_line(out) or "it does not say that it is one")
    if int(found.group(1)) < OLDEST_CLANG:
        raise CompileError(f"it is {found.group(0)}")
    zig, version = _is_zig(command), found.group(0)
    if zig:  # it carries headers and libraries
        ours = command[1:] == ("cc",) and Path(command[0]) in ziglang.programs()
        version += f" of ziglang {ziglang.version_of(Path(command[0])) if ours else ' '.join(command)}"
    compiler = Compiler(command, version, zig, environment)
    _require_headers(compiler, platform, out.stdout)
    return compiler


def _require_headers(compiler: Compiler, platform: Platform, about: str) -> None:
    """CompileError unless it compiles PROBE; that it did is remembered in the cache."""
    flags = compiler.target_flags(platform)
    key = repr((compiler.command, shutil.which(compiler.command[0]), about, flags)).encode()
    known = data.cached("compilers") / hashlib.sha256(key).hexdigest()[:32]
    if known.exists():
        return
    with data.scratch() as folder:
        (folder / "probe.c").write_text(PROBE)
        arguments = [*flags, "-c", "probe.c", "-o", "probe.o"]
        out = _output([*compiler.command, *arguments], compiler.environment, folder)
        if out.returncode or not (folder / "probe.o").exists():
            raise CompileError(f"it cannot compile: {_first_error(out)}")
    try:
        known.touch()
    except OSError:  # a cache that cannot be written: the next run asks again
        return


def _output(
    command: list[str], environment: Mapping[str, str], cwd: Path | None = None, endless: bool = False
) -> subprocess.CompletedProcess[str]:
    """What a command prints, whatever its encoding is; CompileError where it does not run."""
    try:
        return subprocess.run(
            command, cwd=cwd, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, capture_output=True,
            encoding="utf-8", errors="replace", timeout=None if endless else TIMEOUT_S, check=False,
        )  # fmt: skip
    except (OSError, ValueError) as e:  # ValueError: a NUL in its name
        raise CompileError(f"cannot run {command[0]}: {getattr(e, 'strerror', None) or e}") from e
    except subprocess.TimeoutExpired:
        raise CompileError(f"{shlex.join(command)} does not end") from None


def _is_zig(command: tuple[str, ...]) -> bool:
    """Whether a command is zig's, by the name of a program or module in it: "zig cc", "python -m ziglang cc"."""
    return any("zig" in Path(word).name.lower() for word in command)


def _last_line(out: subprocess.CompletedProcess[str]) -> str:
    """The end of what a command complained of."""
    return (out.stderr.strip().splitlines() or [""])[-1]


def _first_error(out: subprocess.CompletedProcess[str]) -> str:
    """The line in which a compiler says what is wrong."""
    lines = [*out.stderr.strip().splitlines(), f"it ends with exit code {out.returncode} and writes nothing"]
    return next((line for line in lines if "error" in line), lines[0])
