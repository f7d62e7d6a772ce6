"""The CPU time and the memory that this process may use: limits of its Linux control groups, in which containers run.

https://docs.kernel.org/admin-guide/cgroup-v2.html has the files, `cpu.max` and `memory.max`; version 1 has others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

UNLIMITED = 1 << 60
"""Bytes that no machine has: version 1 writes some such number where there is no limit."""


@dataclass(frozen=True)
class MemoryLimit:
    """Bytes that a group may hold, and how many of them it does not hold yet; what can be dropped counts as free."""

    bytes: int
    free: int


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPUs' worth of time, the least that a group of this process or one around it grants; None without a limit.

    root: of the file system that has /proc and what it says is mounted.
    """
    limits = (_cpu_limit(group) for group in _groups(root, "cpu"))
    return min((quota / period for quota, period in limits if quota > 0 and period > 0), default=None)


def memory_limit(root: Path = Path("/")) -> MemoryLimit | None:
    """The limit of this process's group or of one around it that leaves the least memory; None without a limit."""
    limits = (_memory_limit(group) for group in _groups(root, "memory"))
    return min((limit for limit in limits if limit), key=lambda limit: limit.free, default=None)


def _memory_limit(group: Path) -> MemoryLimit | None:
    """A group's own limit. What it holds of files, mapped weights too, is dropped before it runs out of memory."""
    for most, used, prefix in (
        ("memory.max", "memory.current", ""),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ):
        try:
            limit, held = (int((group / name).read_text()) for name in (most, used))
            pages = re.findall(rf"^{prefix}(?:in)?active_file (\d+)$", (group / "memory.stat").read_text(), re.M)
        except (OSError, ValueError):  # no such file, or "max"
            continue
        dropped = min(sum(map(int, pages)), held)
        return MemoryLimit(limit, max(0, limit - held + dropped)) if limit < UNLIMITED else None
    return None


def _cpu_limit(group: Path) -> tuple[int, int]:
    """Microseconds of CPU time that a group has in each period, and of the period; zeros without a limit."""
    for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = (int(word) for name in files for word in (group / name).read_text().split())
            return quota, period
        except (OSError, ValueError):  # no such file, or "max"
            pass
    return 0, 0


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's groups that may limit "cpu" or "memory", each followed by those around it."""
    try:
        of = (root / "proc/self/cgroup").read_text()
        mounts = (root / "proc/self/mountinfo").read_text()
    except (OSError, ValueError):  # not Linux
        return
    paths = {name: path for names, path in re.findall(r"^\d+:(.*?):(.*)$", of, re.M) for name in names.split(",")}
    mount = r"^\d+ \d+ \S+ (\S+) (\S+) .*- (cgroup2?) \S+ (\S+)$"
    for inside_of, at, kind, options in re.findall(mount, mounts, re.M):
        hierarchy = "" if kind == "cgroup2" else controller
        if hierarchy in paths and (not hierarchy or hierarchy in options.split(",")):
            path, seen = PurePosixPath(paths[hierarchy]), _unescaped(inside_of)
            group = path.relative_to(seen) if path.is_relative_to(seen) else PurePosixPath()
            top = root / _unescaped(at).lstrip("/")
            yield from (top / each for each in (group, *group.parents))


def _unescaped(word: str) -> str:
    r"""A word of mountinfo, in which blanks are octal: \040."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), word)
