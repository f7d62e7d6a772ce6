"""Which file of a repository is meant, where it has several: one that bitgen runs, without loss, the smallest of these.

The head of a GGUF file, some megabytes, says what is in it. Whether bitgen runs a file is decided as when the file is
opened: by the same reader, on the head with a hole behind it instead of the tensors.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bitgen import data
from bitgen.checkpoints.tensors import is_ternary
from bitgen.convert import hub
from bitgen.convert.hub import Listing, RemoteFile
from bitgen.convert.names import HubName
from bitgen.errors import BitgenError, UnsupportedError, brief, size
from bitgen.gguf import split
from bitgen.gguf.container import Container
from bitgen.gguf.cursor import MAGIC
from bitgen.gguf.reader import GgufCheckpoint
from bitgen.gguf.tensors import GROUPED, TERNARY, VECTORS
from bitgen.spec import Listener, ModelShape

HEADS = tuple(1 << n for n in (20, 22, 24, 26))
"""Bytes of a head that are read, and if it is longer, read next. A vocabulary of 262,144 tokens takes some 10 MB."""
MOST_HEADS = 40
"""Files whose heads are read to choose among them."""

_BESIDE = re.compile(r"(?:^|[^a-z])(?:mmproj|imatrix|mtp|lora|adapter)(?:[^a-z]|$)", re.I)
"""Names of files beside a model that are none."""
_OTHER = re.compile(r"(?:^|[-._/])(?P<type>I?Q[1-8]_(?:K|[01]|XXS|XS|S|M|NL)(?:_[A-Z]+)?|MXFP4|NVFP4)(?=[-._]|$)", re.I)
"""Types in names of files that are not ternary, such as Q4_K_M. Q2_0 is."""
_TYPE = re.compile(
    r"(?:^|[-._/])(?:I2_S|TL[12]|[PS]?TQ[12]_0|P?Q2_0(?:_g\d+)?|IQ[12]_BN(?:_R4)?|B?F16|F32|T5)(?=[-._/]|$)", re.I
)
_FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Candidate:
    """A GGUF file, or the parts of a split one."""

    parts: tuple[RemoteFile, ...]

    @property
    def name(self) -> str:
        return self.parts[0].name

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(part.size for part in self.parts)

    @property
    def model(self) -> str:
        """The file's name without its type: files of one model share it as a rule."""
        found = split.NAME.fullmatch(self.name)
        return _TYPE.sub("", found[1] if found else self.name.removesuffix(".gguf")).strip("-._/").lower()


@dataclass(frozen=True)
class Found:
    """What the head of a file says."""

    candidate: Candidate
    types: str  # of the ternary matrices
    shape: ModelShape | None = None  # None: bitgen does not run it
    exact: bool = True  # embedding and head are floats, or ternary themselves
    refused: str = ""  # why bitgen does not run it

    @property
    def rank(self) -> int:
        """0: ternary, nothing rounded; 1: embedding or head are rounded; 2: floats, which may or may not be ternary."""
        return 2 if self.types in _FLOATS else 0 if self.exact else 1


class NotThereError(BitgenError):
    """No file has the name or the type that is asked for."""


Look = Callable[[Candidate], Found]


def candidates(files: Iterable[RemoteFile]) -> list[Candidate]:
    """The GGUF models among files: parts together, without split models of which a part is missing."""
    named = {file.name: file for file in files if file.name.endswith(".gguf")}
    found = []
    for name, file in named.items():
        of = split.NAME.fullmatch(name)
        if of and int(of[3]) > len(named):
            continue
        parts = [part for path in split.paths(Path(name)) if (part := named.get(path.as_posix()))]
        if parts and parts[0] is file and len(parts) == (int(of[3]) if of else 1):
            found.append(Candidate(tuple(parts)))
    return found


def choose(name: HubName, among: Sequence[Candidate], look: Look) -> Found | None:
    """The candidate that a name means; None where it names none itself and there is none that bitgen runs.

    BitgenError: what it names is not there or cannot be run, or it could mean several.
    """
    meant = named(name, among)
    if len(meant) > MOST_HEADS:
        raise BitgenError(f"{name} has {len(meant)} GGUF files; name one of them: {name}:FILE")
    looked = [look(each) for each in meant]
    fits = [each for each in looked if each.shape]
    if not fits and name.pick:
        raise UnsupportedError(f"{name}: {looked[0].candidate.name}: {looked[0].refused}")
    best = [each for each in fits if each.rank == min(fit.rank for fit in fits)]
    shapes = ((each.candidate.model, each.shape) for each in best if each.shape)
    models = {(model, replace(shape, name="", group=0, binary=False)) for model, shape in shapes}
    if len(models) > 1:
        raise BitgenError(f"{name} could mean {_listed([each.candidate for each in best])}: {_how(name, best[0])}")
    return min(best, key=lambda each: (each.candidate.size, each.candidate.name)) if best else None


def refusal(name: HubName, among: Sequence[Candidate]) -> BitgenError:
    """Why nothing of a repository can be run."""
    types = dict.fromkeys(other["type"].upper() if (other := _OTHER.search(c.name)) else c.name for c in among)
    has = f"has GGUF files of {brief(', '.join(types))}, " if types else "has neither a GGUF file "
    nor = "and no checkpoint in safetensors either" if types else "nor a checkpoint in safetensors"
    runs = ", ".join(type for type in TERNARY if type not in (*_FLOATS, "Q2_0_G128", "T5"))
    return UnsupportedError(f"{name} {has}{nor}; bitgen runs ternary models, in GGUF the types {runs}")


def is_beside(candidate: Candidate) -> bool:
    """Whether a file is by its name none of a model, or of a model that is not ternary."""
    file = candidate.name.rpartition("/")[2]
    other = _OTHER.search(file)
    return bool(_BESIDE.search(file) or (other and other["type"].upper() != "Q2_0"))


def named(name: HubName, among: Sequence[Candidate]) -> list[Candidate]:
    """The candidates that a name can mean. Without a pick: all that may be models by their names.

    With one: a file of exactly that name, else those that have it in their names. As llama.cpp does it, it stands
    before "-" or "." there, in upper or lower case. NotThereError: there are none.
    """
    if not name.pick:
        return [each for each in among if not is_beside(each)]
    pick = name.pick
    exact = [c for c in among if any(pick in (part.name, part.name.rpartition("/")[2]) for part in c.parts)]
    if exact:
        return exact
    pattern = re.compile(re.escape(pick) + "[.-]", re.I)
    found = [c for c in among if pattern.search(c.name) and not _BESIDE.search(c.name)]
    if not found:
        there = f"; it has {_listed(among)}" if among else ""
        raise NotThereError(f"{name}: the repository has no GGUF file of that name or type{there}")
    return found


def _listed(among: Iterable[Candidate]) -> str:
    each = sorted(among, key=lambda c: c.size)
    some = ", ".join(f"{c.name} ({size(c.size)})" for c in each[:12])
    return some + (f" and {len(each) - 12} more" if len(each) > 12 else "")


def _how(name: HubName, example: Found) -> str:
    return f"name the one that you want, like {replace(name, pick=example.candidate.name)}"


# ---- heads ----------------------------------------------------------------------------------------------------


def here(folder: Path) -> Look:
    """Looks at files in a folder."""
    return lambda candidate: _judged(candidate, folder / candidate.name)


def there(of: Listing, progress: Listener = lambda *_: None) -> Look:
    """Looks at files of the Hub, by reading their heads."""

    def look(candidate: Candidate) -> Found:
        progress(f"reading the head of {candidate.name}", 0, 0)
        raw = [b""] * len(candidate.parts)
        for step in HEADS:
            for i, part in enumerate(candidate.parts):
                stop = min(step, part.size)
                raw[i] += hub.read(of, part, len(raw[i]), stop) if stop > len(raw[i]) else b""
            found = _with_hole(candidate, raw)
            if found is not None:
                return found
        return Found(candidate, "", refused=f"its head is longer than {size(HEADS[-1])}")

    return look


def _with_hole(candidate: Candidate, raw: Sequence[bytes]) -> Found | None:
    """What the first bytes of a candidate's parts say; None where more are needed."""
    whole = all(len(head) == part.size for head, part in zip(raw, candidate.parts, strict=True))
    with data.scratch() as folder:
        paths = [folder / f"model-{i:05}-of-{len(raw):05}.gguf" for i in range(1, len(raw) + 1)]
        for path, head, part in zip(paths, raw, candidate.parts, strict=True):
            with path.open("wb") as file:
                file.write(head)
                file.truncate(part.size)
        try:
            container = Container(paths[0])
        except BitgenError as error:
            if not whole and len(raw[0]) < HEADS[-1] and raw[0].startswith(MAGIC):
                return None
            where = "" if whole else f"its first {size(len(raw[0]))} are not all of its head, or not sound: "
            return Found(candidate, "", refused=f"{where}{_without(str(error), paths)}")
        starts = [
            min((t.offset for t in container.tensors.values() if t.part == i), default=0) for i in range(len(raw))
        ]
        if not whole and any(start > len(head) for start, head in zip(starts, raw, strict=True)):
            return None
        container.complete = whole
        return _judged(candidate, paths[0], container)


def _judged(candidate: Candidate, path: Path, container: Container | None = None) -> Found:
    of = ""
    try:
        container = container or Container(path)
        of = types(container)
        checkpoint = GgufCheckpoint(container)
    except BitgenError as error:
        return Found(candidate, of, refused=_without(str(error), [path]))
    dense = [t.type_name for t in container.tensors.values() if len(t.shape) == 2 and not is_ternary(t.name)]
    exact = all(type in (*VECTORS, *GROUPED) for type in dense)
    return Found(candidate, of, checkpoint.shape, exact)


def types(container: Container) -> str:
    """The type that most of the ternary matrices' elements have."""
    count: Counter[str] = Counter()
    for tensor in container.tensors.values():
        if is_ternary(tensor.name):
            count[tensor.type_name] += tensor.elements
    return count.most_common(1)[0][0] if count else ""


def _without(message: str, paths: Iterable[Path]) -> str:
    """A message of the reader without the name of a file that is only for this."""
    for path in paths:
        message = message.replace(f"{path}: ", "").replace(str(path), path.name)
    return message
