"""What goes wrong with the Hugging Face Hub, as sentences that say what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from bitgen.convert.names import HubName
from bitgen.errors import BitgenError, brief


class UnreachableError(BitgenError):
    """The Hub does not answer, or is not to be asked."""


@contextmanager
def refusals(name: HubName) -> Iterator[None]:
    """What the library raises about a model, as a BitgenError that says what to do."""
    try:
        yield
    except BitgenError as error:
        raise type(error)(f"{name} cannot be fetched: {error}") from None
    except Exception as error:
        kind = UnreachableError if _is_unreachable(error) else BitgenError
        raise kind(f"{name} cannot be fetched: {_reason(error, name.revision)}") from None


def _is_unreachable(error: Exception) -> bool:
    """No connection, or offline mode. The library's HTTP package is another from one major version to the next."""
    from huggingface_hub import errors

    offline = (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)
    return isinstance(error, offline) or "TransportError" in {kind.__name__ for kind in type(error).__mro__}


def _reason(error: Exception, revision: str | None) -> str:
    """What an error of the library means, and what to do about it."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return "access is granted on its web page; then `hf auth login` or set HF_TOKEN"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.RepositoryNotFoundError) and status != 403:
        return "there is no such model, or it is private: `hf auth login` or set HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "the token has no permission to read it"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no revision {revision or 'main'!r}"
    if isinstance(error, errors.HFValidationError):
        return brief(str(error))
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set and the cache has not all of it; unset it to download"
    if _is_unreachable(error):
        return f"the Hub cannot be reached and the cache has not all of it ({_root(error)}); check the network"
    if status in (401, 403):
        return f"the Hub refused ({status}): `hf auth login` or set HF_TOKEN to a token that may read it"
    if status == 404:
        return f"it has no such file at {revision or 'main'!r}"
    if status is not None:
        return f"the Hub answered {status}; try again later"
    if getattr(error, "errno", None) == errno.ENOSPC:
        said = f" ({error.strerror})" if isinstance(error, OSError) and "bytes" in str(error.strerror) else ""
        return f"the disk is full{said}; free some space or set HF_HOME to a folder with room. What came is kept"
    return f"{type(error).__name__}: {brief(str(error))}; try again: what came is kept"


def _root(error: BaseException) -> str:
    """The first cause of an error, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return brief((str(error) or type(error).__name__).splitlines()[0])
