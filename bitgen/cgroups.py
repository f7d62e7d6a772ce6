"""The CPU time that this process may use: quotas of its Linux control groups, in which containers run.

https://docs.kernel.org/admin-guide/cgroup-v2.html writes them into `cpu.max`, version 1 into two files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPUs' worth of time, the least that a group of this process or one around it grants; None without a limit.

    root: of the file system that has /proc and what it says is mounted.
    """
    limits = (_limit(group) for group in _groups(root))
    return min((quota / period for quota, period in limits if quota > 0 and period > 0), default=None)


def _limit(group: Path) -> tuple[int, int]:
    """Microseconds of CPU time that a group has in each period, and of the period; zeros without a limit."""
    for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = (int(word) for name in files for word in (group / name).read_text().split())
            return quota, period
        except (OSError, ValueError):  # no such file, or "max"
            pass
    return 0, 0


def _groups(root: Path) -> Iterator[Path]:
    """The folders of this process's groups that may limit CPU time, each followed by those around it."""
    try:
        of = (root / "proc/self/cgroup").read_text()
        mounts = (root / "proc/self/mountinfo").read_text()
    except (OSError, ValueError):  # not Linux
        return
    paths = {name: path for names, path in re.findall(r"^\d+:(.*?):(.*)$", of, re.M) for name in names.split(",")}
    mount = r"^\d+ \d+ \S+ (\S+) (\S+) .*- (cgroup2?) \S+ (\S+)$"
    for inside_of, at, kind, options in re.findall(mount, mounts, re.M):
        hierarchy = "" if kind == "cgroup2" else "cpu"
        if hierarchy in paths and (not hierarchy or hierarchy in options.split(",")):
            path, seen = PurePosixPath(paths[hierarchy]), _unescaped(inside_of)
            group = path.relative_to(seen) if path.is_relative_to(seen) else PurePosixPath()
            top = root / _unescaped(at).lstrip("/")
            yield from (top / each for each in (group, *group.parents))


def _unescaped(word: str) -> str:
    r"""A word of mountinfo, in which blanks are octal: \040."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), word)
