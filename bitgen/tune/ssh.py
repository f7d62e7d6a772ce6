"""The command that connects to a device, and what may name one."""

from __future__ import annotations

import ipaddress
import os
import re
import shlex

from bitgen.errors import RemoteError, brief

TARGET = re.compile(
    r"(?P<user>[a-z_][\w.+-]*@)?(?P<host>[a-z0-9_][\w.-]*|\[(?P<v6>[0-9a-f:.]+(%[\w.-]+)?)\])(:(?P<port>[0-9]{1,5}))?",
    re.ASCII | re.IGNORECASE,
)
OPTIONS = ("BatchMode=yes", "ConnectTimeout=15", "ServerAliveInterval=15", "ServerAliveCountMax=4")


def ssh_command(target: str, ssh: str | None = None) -> list[str]:
    """The ssh command for [user@]host[:port], without the remote command; it never prompts. IPv6 stands in brackets.

    RemoteError when `target` or `ssh` has another form. Nothing of `target` can be an option, or words of a shell.
    """
    found = TARGET.fullmatch(target)
    if found is None or not _is_address(found["v6"]) or not 0 < int(found["port"] or 22) < 1 << 16:
        raise RemoteError(f"--remote {brief(target)!r} is not [user@]host[:port]")
    options = [word for option in OPTIONS for word in ("-o", option)]
    port = ["-p", found["port"]] if found["port"] else []
    host = (found["user"] or "") + (found["v6"] or found["host"])
    return [*_client(ssh), "-T", *options, *port, "--", host]


def _is_address(v6: str | None) -> bool:
    """Whether it is an address where there is one."""
    try:
        return v6 is None or bool(ipaddress.IPv6Address(v6))
    except ValueError:
        return False


def _client(ssh: str | None) -> list[str]:
    """The words of the command that connects; RemoteError where there are none."""
    text = os.environ.get("BITGEN_SSH") or "ssh" if ssh is None else ssh
    try:
        words = shlex.split(text)
    except ValueError as e:
        raise RemoteError(f"--ssh {brief(text)!r} is no command line: {e}") from None
    if not words or not words[0]:
        raise RemoteError(f"--ssh {brief(text)!r} names no program")
    return words
