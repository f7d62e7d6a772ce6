"""What a model is called: a file, a folder, the model that ships, a preset, or a model on the Hugging Face Hub.

model.gguf                              a file; what exists, and what ends in .gguf, always is one
./checkpoint                            a folder with a config.json
stories                                 the model that ships
2B4T                                    a preset: its repository on the Hub
hf:owner/repo[@revision][:TAG|:FILE]    a repository; also hf.co/..., huggingface.co/..., with or without https://
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from bitgen.checkpoints import presets
from bitgen.data import SHIPPED, shipped_path
from bitgen.errors import BitgenError, UnsupportedError, brief, quoted

HUB = "hf:"

_REVISION = r"[\w-][\w.-]*(?:/[\w-][\w.-]*)*"
_NAME = re.compile(
    rf"(?P<repo>[\w.-]+/[\w.-]+?)(?:@(?P<revision>{_REVISION}))?(?::(?P<pick>[^\x00-\x1f\x7f]{{1,255}}))?", re.ASCII
)
_SITE = re.compile(r"(?:https?://)?(?:www\.)?(?:hf\.co|huggingface\.co)/", re.I)
_PAGE = re.compile(r"(?P<repo>[^/]+/[^/]+)/(?:tree|blob|resolve)/(?P<revision>[^/]+)(?:/(?P<pick>.+))?")


@dataclass(frozen=True)
class HubName:
    """A model on the Hub, or one of those in a repository."""

    repo: str  # owner/name
    revision: str | None = None  # branch, tag or commit; None: main
    pick: str | None = None  # a file, or a part of its name such as TQ2_0

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return f"{HUB}{self.repo}{at}{f':{self.pick}' if self.pick else ''}"

    @property
    def short(self) -> str:
        """The repository's name without its owner."""
        return self.repo.rpartition("/")[2]


def meaning(name: str | Path) -> Path | HubName:
    """The file, the folder of a checkpoint, or the model on the Hub that a name stands for. Nothing is looked up.

    BitgenError: it stands for nothing; says what is near. A file that ends in .gguf need not exist.
    """
    path, text = Path(name), str(name)
    if _is_file(path):
        return path
    found = on_hub(text) if isinstance(name, str) else None
    if found is not None:
        return found
    if path.suffix == ".gguf" or isinstance(name, Path) or _is_file(path / "config.json"):
        return path
    return shipped_path() if text.lower() == SHIPPED else _preset(text)


def on_hub(text: str) -> HubName | None:
    """The model on the Hub that a text names by hf: or by the address of its page; None: it names none so.

    UnsupportedError: it begins so and goes on otherwise.
    """
    if text.lower().startswith(HUB):
        return _parsed(text, text[len(HUB) :])
    site = _SITE.match(text)
    if site is None:
        return None
    rest = re.split(r"[?#]", text[site.end() :])[0].rstrip("/")
    page = _PAGE.fullmatch(rest)
    if page is None:
        return _parsed(text, rest)
    pick = f":{unquote(page['pick'])}" if page["pick"] and page["pick"].endswith(".gguf") else ""
    return _parsed(text, f"{page['repo']}@{unquote(page['revision'])}{pick}")


def _parsed(text: str, rest: str) -> HubName:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    found = _NAME.fullmatch(rest)
    if found is None:
        raise UnsupportedError(
            f"{quoted(text)} is no id of a model on the Hub; those are {HUB}owner/name, {HUB}owner/name@revision "
            f"and {HUB}owner/name:TAG"
        )
    try:
        validate_repo_id(found["repo"])
    except HFValidationError as error:
        raise UnsupportedError(f"{quoted(text)} is no id of a model on the Hub: {brief(str(error))}") from None
    return HubName(found["repo"], found["revision"], found["pick"])


def _preset(text: str) -> HubName:
    try:
        id = presets.hub_id(text)
    except UnsupportedError as error:
        if text and _there(Path(text)):
            raise BitgenError(f"{brief(text)}: a folder without a config.json; name a GGUF file in it") from None
        hint = f"; on the Hugging Face Hub: {HUB}{text}" if _NAME.fullmatch(text) else ""
        raise BitgenError(f"{brief(text)}: no such file or folder, and {error}{hint}") from None
    if id is None:
        raise BitgenError(
            f"{text}: no such file, and the preset of that name is not on the Hugging Face Hub; name a GGUF file, or "
            f"{HUB}owner/name of a repository that has one"
        )
    return HubName(id)


def _is_file(path: Path) -> bool:
    """Whether something is there that is no folder."""
    return _there(path) and not path.is_dir()


def _there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or has U+0000
        return False
