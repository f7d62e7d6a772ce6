"""Split models: a model in several files, as llama-gguf-split writes them.

The files are named NAME-00001-of-00003.gguf and so on and lie in one folder. Each says which part it is and of how
many; the first has the model's key-values, and each has some of the tensors.
"""

from __future__ import annotations

import re
from pathlib import Path

from bitgen.errors import FormatError, UnsupportedError, brief, quoted
from bitgen.gguf.file import File

NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
JOIN = "llama-gguf-split --merge joins the parts of a model to one file"


def paths(path: Path) -> tuple[Path, ...]:
    """All parts that a part's name stands for, in order; of any other name, that path alone."""
    found = NAME.fullmatch(path.name)
    if found is None:
        return (path,)
    stem, _, count = found.groups()
    return tuple(path.with_name(f"{stem}-{i:05}-of-{count}.gguf") for i in range(1, int(count) + 1))


def together(given: File) -> list[File]:
    """The parts of the split model that a file belongs to, in order; that file alone where it is a whole model.

    FormatError: a part is not there, or parts contradict each other. UnsupportedError: they are not named as parts are.
    """
    number, count = _place(given)
    if count == 1:
        return [given]
    names, what = paths(given.path), f"{given.path}: this is part {number + 1} of {count} of a split model"
    if len(names) != count or names[number] != given.path:
        raise UnsupportedError(
            f"{what}, and not named so, like model-{number + 1:05}-of-{count:05}.gguf, by which the other parts are "
            f"found: give it its name again; {JOIN}"
        )
    for path in names:
        if not path.exists():
            raise FormatError(f"{what}, and {path.name} is not beside it: fetch that file too")
    parts = [given if i == number else File(path) for i, path in enumerate(names)]
    _check(parts, what)
    return parts


def _place(file: File) -> tuple[int, int]:
    """Which part a file is, from 0, and of how many."""
    number, count = file.metadata.get("split.no", 0), file.metadata.get("split.count", 1)
    if type(number) is not int or type(count) is not int or not 0 <= number < max(count, 1):
        said = f"split.no is {quoted(number)} and split.count {quoted(count)}"
        raise FormatError(f"{file.path}: {said}; the file is corrupt")
    return number, max(count, 1)


def _check(parts: list[File], what: str) -> None:
    """Each part is the one that its name says, no tensor is in two of them, and none is missing."""
    seen: dict[str, Path] = {}
    for i, part in enumerate(parts):
        if (place := _place(part)) != (i, len(parts)):
            raise FormatError(
                f"{what}, but {part.path.name} says that it is part {place[0] + 1} of {place[1]}: "
                "these files are not of one model"
            )
        for name in part.tensors:
            if name in seen:
                raise FormatError(f"{what}, and {seen[name].name} and {part.path.name} both have {brief(name)}")
            seen[name] = part.path
    stated = parts[0].metadata.get("split.tensors.count", len(seen))
    if stated != len(seen):
        raise FormatError(f"{what}, whose parts have {len(seen)} tensors; split.tensors.count is {quoted(stated)}")
