"""The clang inside the `ziglang` package: where it is, and how it gets here where there is no compiler at all.

It is then fetched once, by the user's own pip (or uv), so from the index that they are configured for, into a private
folder of the cache. Nothing else of bitgen downloads a program.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from bitgen import data, store
from bitgen.errors import BitgenError, CompileError, brief

OLDEST, BELOW = "0.13", "0.18"
REQUIREMENT = f"ziglang>={OLDEST},<{BELOW}"
SIZE = "a download of about 100 MB, 410 MB unpacked"

_PROGRAM = "zig.exe" if os.name == "nt" else "zig"
_PROOF = "bytes"  # a file with the size of the program, the last to be written


def programs() -> Iterator[Path]:
    """The zig of this environment's package, then the one that was fetched, as far as they are there."""
    found = importlib.util.find_spec("ziglang")
    for folder in (found.submodule_search_locations if found else None) or ():
        if (Path(folder) / _PROGRAM).is_file():
            yield Path(folder) / _PROGRAM
    if _is_sound(_place()):
        yield _place() / "ziglang" / _PROGRAM


def version_of(program: Path) -> str:
    """The version of the package that a zig came in."""
    of = importlib.metadata.distributions(name="ziglang", path=[str(program.parent.parent)])
    return next((each.version for each in of), "unknown")


def installer() -> list[str] | None:
    """The command that installs packages, without its arguments; None where there is none.

    Any pip will do, since the package is the same for every Python 3: ours, one on the PATH, the one inside ensurepip.
    """
    if sys.executable and importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "install", "--no-input"]
    if sys.executable and (uv := shutil.which("uv")):
        return [uv, "pip", "install", "--python", sys.executable]
    if pip := shutil.which("pip3") or shutil.which("pip"):
        return [pip, "install", "--no-input"]
    wheel = next(_pip_wheels(), None) if sys.executable else None
    return [sys.executable, str(wheel / "pip"), "install", "--no-input"] if wheel else None


def _pip_wheels() -> Iterator[Path]:
    """The pip with which Python makes environments: within ensurepip, or where the distribution keeps it."""
    found = importlib.util.find_spec("ensurepip")
    if found and found.origin:
        yield from (Path(found.origin).parent / "_bundled").glob("pip-*.whl")
        yield from Path(sysconfig.get_config_var("WHEEL_PKG_DIR") or "/nowhere").glob("pip-*.whl")


def why_not() -> str | None:
    """Why nothing can be fetched; None where it can be tried."""
    asked = data.offline()
    if asked:
        return f"{asked} asks for no network"
    return None if installer() else "there is neither pip nor uv"


def fetch() -> None:
    """See to it that a zig is in the cache. One process fetches it, and others wait.

    CompileError says why it cannot be had.
    """
    reason = why_not()
    if reason:
        raise CompileError(reason)
    place = _place()
    data.once(
        place, lambda: _is_sound(place), lambda: _install(place), lambda: _tell(f"{data.WAITING} that fetches it")
    )


def _place() -> Path:
    """Its folder, which the machines of a shared home do not share."""
    return data.cached("ziglang") / store.slug(f"{OLDEST}-{BELOW}-{sysconfig.get_platform()}")


def _is_sound(place: Path) -> bool:
    """Whether a whole zig is there that nobody else could have written. That it works is tried as of any compiler."""
    program = place / "ziglang" / _PROGRAM
    try:
        size = int((place / _PROOF).read_text())
        return program.stat().st_size == size and all(map(store.is_private, (place, program.parent, program)))
    except (OSError, ValueError):
        return False


def _install(place: Path) -> None:
    """Have it installed in a work folder, which becomes its place."""
    command = installer() or []
    tool = "uv" if "--python" in command else "pip"
    _tell(f"there is no C compiler here: {tool} fetches {REQUIREMENT} once, {SIZE}, into {place}")
    try:
        with store.work_folder(place.parent) as work:
            made = work / "made"
            _run([*command, "--no-deps", "--target", str(made), REQUIREMENT], work)
            program = made / "ziglang" / _PROGRAM
            (made / _PROOF).write_text(f"{program.stat().st_size}\n")
            shutil.rmtree(place, ignore_errors=True)
            made.rename(place)
    except OSError as e:
        advice = "free some space or set BITGEN_CACHE to a folder with room"
        raise BitgenError(f"ziglang cannot be kept in {place}: {e.strerror or e}; {advice}") from e


def _run(command: list[str], work: Path) -> None:
    """Run pip or uv. A folder is named to them, so what is configured for environments does not count."""
    environment = {
        "PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0", "PIP_BREAK_SYSTEM_PACKAGES": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }  # fmt: skip
    try:
        done = subprocess.run(
            command, cwd=work, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, capture_output=True,
            encoding="utf-8", errors="replace", check=False,
        )  # fmt: skip
    except OSError as e:
        raise CompileError(f"cannot run {command[0]}: {e.strerror}") from e
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        wrong = next((line for line in lines if line.lower().startswith("error")), lines[-1])
        broken = re.findall(r"connection broken by '(.*)'", done.stderr)  # without a network pip finds no version
        cause = f" ({brief(broken[-1])})" if broken else ""
        raise CompileError(f"`{shlex.join(command)}` failed: {brief(wrong)}{cause}")


def _tell(text: str) -> None:
    """A line on stderr: who waits for a hundred megabytes wants to know."""
    if sys.stderr:
        print(f"bitgen: {text}", file=sys.stderr, flush=True)
