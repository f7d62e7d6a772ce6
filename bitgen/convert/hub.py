"""Checkpoints from the Hugging Face Hub, by `huggingface_hub`: its cache, resumed downloads, token and endpoint."""

from __future__ import annotations

import errno
import re
from pathlib import Path

from bitgen.errors import BitgenError, UnsupportedError

FILES = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "adapter_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*.safetensors",
    "1_Pooling/config.json",
]
"""Files that a conversion reads. Nothing else in a repository is fetched."""

_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?", re.ASCII)


def download(id: str) -> Path:
    """The folder of a snapshot of "owner/name" or "owner/name@revision"; files that the cache lacks are fetched.

    An interrupted download goes on where it was. Honours HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE and the token of
    `hf auth login` or HF_TOKEN. BitgenError: says what to do about a wrong name, a missing permission or no network.
    """
    from huggingface_hub import errors, snapshot_download

    found = _ID.fullmatch(id)
    if found is None:
        raise UnsupportedError(f"{id!r} is no id of a model on the Hub; those are owner/name or owner/name@revision")
    repo, revision = found["repo"], found["revision"]
    try:
        ignored = ["*/*.safetensors"]
        return Path(snapshot_download(repo, revision=revision, allow_patterns=FILES, ignore_patterns=ignored))
    except errors.GatedRepoError:
        reason = "access is granted on its web page; then `hf auth login` or set HF_TOKEN"
    except errors.RepositoryNotFoundError as error:
        reason = "there is no such model, or it is private: `hf auth login` or set HF_TOKEN"
        if error.response.status_code == 403:
            reason = "the token has no permission to read it"
    except errors.RevisionNotFoundError:
        reason = f"it has no revision {revision or 'main'!r}"
    except errors.LocalEntryNotFoundError as error:
        reason = f"the Hub cannot be reached and the cache has not all of it ({_root(error)}); check the network"
    except errors.HFValidationError as error:
        reason = str(error)
    except Exception as error:
        reason = _other(error)
    raise BitgenError(f"hf:{id} cannot be fetched: {reason}")


def _other(error: Exception) -> str:
    """The reason of an error that the library passes on from HTTP or the file system."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"the Hub refused ({status}): `hf auth login` or set HF_TOKEN to a token that may read it"
    if status is not None:
        return f"the Hub answered {status}; try again later"
    if getattr(error, "errno", None) == errno.ENOSPC:
        return "the disk is full; free some space or set HF_HOME to a folder with room. What came is kept"
    return f"{type(error).__name__}: {error}; try again: what came is kept"


def _root(error: BaseException) -> str:
    """The first cause of an error, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error) or type(error).__name__).splitlines()[0]
