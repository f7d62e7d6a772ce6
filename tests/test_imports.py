"""The house stands as docs/architecture.md draws it: imports and includes follow its arrows, and nothing goes round.

The two mermaid pictures there are the rule: `a --> b` says that a may import b and all that b reaches. Every import
counts, those inside functions and for type checkers too.
"""

from __future__ import annotations

import ast
import functools
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import places
import pytest

PACKAGE, RUNTIME = places.REPO / "bitgen", places.REPO / "runtime"

Graph = Mapping[str, set[str]]
"""What each file or folder imports or includes."""


def picture(number: int) -> dict[str, set[str]]:
    """The arrows of a mermaid picture of docs/architecture.md, counted from 0."""
    text = (places.REPO / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn: dict[str, set[str]] = {}
    for line in re.findall(r"```mermaid\n(.*?)```", text, re.S)[number].splitlines():
        ends = [re.findall(r"[\w/]+", part.partition("[")[0]) for part in line.split("-->")]
        for above, below in itertools.pairwise(ends):
            for a in above:
                drawn.setdefault(a, set()).update(below)
    return drawn


def reach(graph: Graph) -> dict[str, set[str]]:
    """For each node all that can be reached from it."""
    order = list(TopologicalSorter(graph).static_order())
    reached: dict[str, set[str]] = {}
    for node in order:
        below = graph.get(node, set())
        reached[node] = below.union(*(reached[b] for b in below))
    return reached


@functools.cache
def python_imports() -> dict[str, set[str]]:
    """Module -> the modules of ours that it imports, as "kernels.space"; a package's own names are its __init__."""
    names = {module_name(path): path for path in PACKAGE.rglob("*.py") if "_data" not in path.parts}
    return {name: set(imported(path, names)) - {name} for name, path in names.items()}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imported(path: Path, names: Iterable[str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "bitgen":
            assert not node.level, path
            package = ".".join(str(node.module).split(".")[1:])
            for alias in node.names:
                inner = f"{package}.{alias.name}".lstrip(".")
                found = [
                    n for n in (inner, package, f"{package}.__init__".lstrip("."), f"{inner}.__init__") if n in names
                ]
                assert found, f"{path} imports {inner}, which is not there"
                yield found[0]
        elif isinstance(node, ast.Import):
            yield from (a.name.removeprefix("bitgen.") for a in node.names if a.name.startswith("bitgen."))


@functools.cache
def c_includes() -> dict[str, set[str]]:
    """A .c file with its header, "core/session" -> those that the two include."""
    parts: dict[str, set[str]] = {}
    for path in sorted(RUNTIME.rglob("*.[ch]")):
        own = path.relative_to(RUNTIME).with_suffix("").as_posix()
        names = re.findall(r'^#include "([^"]+)\.h"', path.read_text(encoding="utf-8"), re.M)
        for name in names:
            assert (RUNTIME / f"{name}.h").is_file(), f"{path} includes {name}.h, which is not named from runtime/"
        parts.setdefault(own, set()).update(set(names) - {own})
    return parts


def rooms(graph: Graph, separator: str) -> dict[str, set[str]]:
    """Folder -> the folders that its files need; a file outside folders is a room of its own."""
    found: dict[str, set[str]] = {}
    for name, others in graph.items():
        room = name.split(separator)[0]
        found.setdefault(room, set()).update({other.split(separator)[0] for other in others} - {room})
    return found


@pytest.mark.parametrize("graph", [python_imports, c_includes])
def test_no_circles_between_files(graph) -> None:
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize(("number", "graph", "separator"), [(0, python_imports, "."), (1, c_includes, "/")])
def test_every_arrow_is_in_the_picture(number: int, graph, separator: str) -> None:
    drawn, built = picture(number), rooms(graph(), separator)
    allowed = reach(drawn)
    wrong = {f"{a} -> {b}" for a, others in built.items() for b in others if b not in allowed.get(a, ())}
    assert not wrong, f"against docs/architecture.md: {sorted(wrong)}"
    unused = {f"{a} -> {b}" for a, others in drawn.items() for b in others if b not in built.get(a, ())}
    assert not unused, f"drawn in docs/architecture.md, but nothing imports so: {sorted(unused)}"
    assert set(built) <= set(allowed), sorted(set(built) - set(allowed))


def test_kernels_stand_below_engines() -> None:
    """What the design promises whatever the picture says."""
    below = reach(rooms(python_imports(), "."))
    assert not below["kernels"] & {"engine", "serve", "cli", "compile", "gguf", "checkpoints"}
    for top in ("cli", "serve", "api"):
        assert not [room for room, others in below.items() if top in others and room not in ("cli", "__main__")], top
