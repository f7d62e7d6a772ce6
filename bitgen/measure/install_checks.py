"""Checks of the installation: each is a function that yields findings and may raise anything."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import socket
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bitgen import data, store, targets
from bitgen.compile import compiler, library, ziglang
from bitgen.errors import BitgenError, CompileError, size
from bitgen.kernels import plan
from bitgen.measure.findings import Finding, Models, readable, unknown

LITTLE_BYTES = 2_000_000_000
"""Of free space; the packed file of a model of two billion parameters has half of it."""
ANSWER_S = 5.0
"""That a connection to the Hub may take."""
PORT = 8080
"""Where servers of language models usually listen."""
EXTRAS = {"lm-eval": ("lm_eval",), "plot": ("matplotlib",)}
"""Extra of pyproject.toml -> the modules that it is there for."""


def compilers(_: Models) -> Iterator[Finding]:
    """The compiler that is used, then the others that are there. None is fetched for that."""
    host = targets.platform_of()
    try:
        used = compiler.installed(host)
    except compiler.NoCompilerError as e:
        yield _no_compiler(str(e))
        return
    by = " (named by BITGEN_CC)" if os.environ.get("BITGEN_CC") else ""
    yield _compiler(used, f", is used{by}", {"used": True, "named": bool(by)})
    seen = {_program(used.command)}
    for command in compiler.candidates(host):
        if _program(command) in seen:
            continue
        seen.add(_program(command))
        try:
            yield _compiler(compiler.probe(command, host), ", is there too", {"used": False, "named": False})
        except CompileError as e:
            values = {"command": list(command), "version": None, "used": False, "named": False}
            advice = "install the headers of the C library (Debian: libc6-dev), or leave it: another compiler serves"
            yield Finding("compiler", "warning", f"{shlex.join(command)} does not serve: {e}", advice, values)


def _no_compiler(wrong: str) -> Finding:
    """Whether the first model that runs would get one. wrong: a line for each that does not serve."""
    fact, reason = f"there is none{wrong}", ziglang.why_not()
    if reason:
        advice = "install clang, or pip install ziglang; BITGEN_CC=/path/to/clang names yours"
        return Finding("compiler", "problem", f"{fact}\nnone can be fetched: {reason}", advice, {"used": False})
    advice = f"the first run fetches {ziglang.REQUIREMENT} ({ziglang.SIZE}); a system clang saves that"
    return Finding("compiler", "warning", fact, advice, {"used": False})


def _compiler(found: compiler.Compiler, role: str, values: Mapping[str, Any]) -> Finding:
    facts = {"command": list(found.command), "version": found.version, **values}
    return Finding("compiler", "ok", f"{found.version}, {shlex.join(found.command)}{role}", values=facts)


def _program(command: tuple[str, ...]) -> tuple[str, ...]:
    """A command by the file that runs: clang is often a link to clang-14."""
    return (os.path.realpath(shutil.which(command[0]) or command[0]), *command[1:])


def cache(_: Models) -> Iterator[Finding]:
    """Our cache: written to as any command does, since rights alone do not say whether that works."""
    root = data.cache_root()
    try:
        root.mkdir(0o700, parents=True, exist_ok=True)
        with store.work_folder(data.cached("build")) as work:
            (work / "part").write_bytes(bytes(1 << 16))
    except OSError as e:
        advice = "set BITGEN_CACHE to a folder of your own on a disk with room"
        values = {"path": str(root), "writable": False}
        yield Finding("cache", "problem", f"{root} cannot be written to: {e.strerror or e}", advice, values)
        return
    kinds = {each.name: _held(each) for each in sorted(root.iterdir()) if each.is_dir()}
    free = shutil.disk_usage(root).free
    values = {"path": str(root), "writable": True, "private": True, "free_bytes": free, "held_bytes": kinds}
    held = ", ".join(f"{kind} {size(held)}" for kind, held in kinds.items() if held) or "nothing"
    fact = f"{root} is writable and private, holds {held}; {size(free)} free"
    if hasattr(os, "statvfs") and os.statvfs(root).f_flag & getattr(os, "ST_NOEXEC", 0):
        advice = "set BITGEN_CACHE to a folder on a disk that is mounted without noexec"
        yield Finding("cache", "problem", f"{root} is on a disk from which no library may be loaded", advice, values)
    elif free < LITTLE_BYTES:
        yield Finding("cache", "warning", fact, "free some space, or set BITGEN_CACHE to a folder with room", values)
    else:
        yield Finding("cache", "ok", fact, values=values)


def hub_cache(_: Models) -> Iterator[Finding]:
    """The cache of Hugging Face, where downloads go."""
    from huggingface_hub import constants, scan_cache_dir

    root = Path(constants.HF_HUB_CACHE)
    there = root.is_dir()
    at = next(folder for folder in (root, *root.parents) if folder.exists())
    writable, private, free = os.access(at, os.W_OK | os.X_OK), store.is_private(at), shutil.disk_usage(at).free
    held = scan_cache_dir(root) if there else None
    repositories, held_bytes = (len(held.repos), held.size_on_disk) if held else (0, 0)
    values = {
        "path": str(root), "exists": there, "writable": writable, "private": private, "free_bytes": free,
        "repositories": repositories, "held_bytes": held_bytes,
    }  # fmt: skip
    holds = f"holds {repositories} repositories, {size(held_bytes)}" if there else "is not there yet"
    fact = f"{root} (Hugging Face) {holds}; {size(free)} free"
    if not at.is_dir() or not writable:
        yield Finding(
            "hub_cache", "warning", f"{fact}; {at} cannot be written to", "set HF_HOME to a folder of your own", values
        )
    elif there and not private:
        advice = f"take the right from them: chmod go-w {shlex.quote(str(root))}"
        yield Finding("hub_cache", "warning", f"{fact}; other users may write to it", advice, values)
    elif free < LITTLE_BYTES:
        yield Finding("hub_cache", "warning", fact, "free some space, or set HF_HOME to a folder with room", values)
    else:
        yield Finding("hub_cache", "ok", fact, values=values)


def plans(models: Models) -> Iterator[Finding]:
    """Where the kernels of each model come from, and whether tuning of this host has become stale."""
    try:
        compiler.installed(targets.platform_of())
        isa = library.host_isa()
    except BitgenError as e:
        yield unknown("plan", e)
        return
    host = plan.load(plan.host_path(isa))
    for name, shape in readable(models):
        planned = plan.of_model(shape, isa)
        decided = host.decisions if host else {}
        stale = [r for r, g in shape.all_matrices.items() if g in decided and not decided[g].is_current(g, isa)]
        counts = Counter(planned.sources.values())
        fact = f"{name} on {isa}: " + ", ".join(f"{n} matrices {source}" for source, n in counts.items())
        values = {
            "model": name,
            "level": isa,
            "sources": dict(planned.sources),
            "stale": stale,
            "threads": planned.threads,
        }
        tune = f"bitgen tune --model {shlex.quote(name)}"
        if stale:
            fact += f"; tuned for kernels of an earlier bitgen: {', '.join(stale)}"
            yield Finding("plan", "warning", fact, f"{tune} measures those anew", values)
        else:
            tuned = set(counts) == {"tuned on this host"}
            yield Finding("plan", "ok", fact, "" if tuned else f"{tune} measures on this CPU", values)


def hub(_: Models) -> Iterator[Finding]:
    """Whether downloads can begin. A token is only said to be there."""
    from huggingface_hub import constants, get_session, get_token

    (endpoint, user), token = _split_user(constants.ENDPOINT), get_token() is not None
    with_token = "with a token" if token else "without a token (only private and gated models need one)"
    asked = data.offline() or ("HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else None)
    values: dict[str, Any] = {"endpoint": endpoint, "offline": bool(asked), "token": token}
    if asked:
        yield Finding("hub", "ok", f"{endpoint} is not asked: {asked} wants no network; {with_token}", values=values)
        return
    try:
        status = get_session().head(constants.ENDPOINT, timeout=ANSWER_S).status_code
    except Exception as e:  # of whatever HTTP library this version of the package uses
        reason = f"{type(e).__name__}: {e}"
        fact = f"{endpoint} cannot be reached: {reason.replace(user, '') if user else reason}"
        advice = "check the network, HF_ENDPOINT and proxies; models that are on this disk run without it"
        yield Finding("hub", "warning", fact, advice, {**values, "status": None})
        return
    fact = f"{endpoint} answers; {with_token}"
    if status >= 500:
        fact, advice = f"{endpoint} answers {status}; {with_token}", "try again later, or set HF_ENDPOINT to a mirror"
        yield Finding("hub", "warning", fact, advice, {**values, "status": status})
    else:
        yield Finding("hub", "ok", fact, values={**values, "status": status})


def extras(_: Models) -> Iterator[Finding]:
    """Optional packages."""
    for name, modules in EXTRAS.items():
        there = all(importlib.util.find_spec(module) for module in modules)
        fact = f"{name} is installed" if there else f"{name} is not installed"
        advice = "" if there else f"pip install 'bitgen[{name}]', in a checkout pip install '.[{name}]'"
        yield Finding("extra", "ok", fact, advice, {"extra": name, "installed": there})


def port(_: Models) -> Iterator[Finding]:
    """Whether a server could listen at the usual place."""
    with socket.socket() as listener:
        if os.name != "nt":  # where it would let two servers listen
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", PORT))
        except OSError as e:
            fact = f"port {PORT} of this machine is taken: {e.strerror or e}"
            yield Finding("port", "warning", fact, "give a server another port", {"port": PORT, "free": False})
        else:
            yield Finding("port", "ok", f"port {PORT} of this machine is free", values={"port": PORT, "free": True})


def _held(folder: Path) -> int:
    """Bytes of all files in a folder."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(path, name)).st_size  # noqa: PTH118
            except OSError:  # removed meanwhile
                continue
    return total


def _split_user(url: str) -> tuple[str, str]:
    """A URL without the user and the password that it may carry, and those."""
    scheme, slashes, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    user, at, place = host.rpartition("@")
    return f"{scheme}{slashes}{place}{slash}{path}", user + at
