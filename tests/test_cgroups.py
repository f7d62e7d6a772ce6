"""Limits of control groups, in trees like the kernel's: CPU time, by which threads are counted, and memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bitgen import targets
from bitgen.cgroups import MemoryLimit, cpu_quota, memory_limit

V2 = "31 23 0:28 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1 = """32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
33 31 0:30 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset
34 31 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"""
DISK = "23 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw"


def tree(root: Path, groups: str, mounts: str, files: dict[str, str]) -> Path:
    """A file system with /proc, and with these files in /sys/fs/cgroup."""
    proc = {"proc/self/cgroup": groups + "\n", "proc/self/mountinfo": f"{DISK}\n{mounts}\n"}
    for name, text in {**proc, **{f"sys/fs/cgroup/{name}": text + "\n" for name, text in files.items()}}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


CASES = {
    "none": ("0::/", V2, {}, None),
    "version 2": ("0::/pod/app", V2, {"pod/app/cpu.max": "150000 100000"}, 1.5),
    "a group around it": ("0::/pod/app", V2, {"pod/app/cpu.max": "max 100000", "pod/cpu.max": "200000 100000"}, 2),
    "the least": ("0::/pod/app", V2, {"pod/app/cpu.max": "300000 100000", "pod/cpu.max": "50000 100000"}, 0.5),
    "the top": ("0::/", V2, {"cpu.max": "70000 20000"}, 3.5),
    "another's": ("0::/pod/app", V2, {"pod/other/cpu.max": "10000 100000", "other/cpu.max": "10000 100000"}, None),
    "version 1": (
        "4:memory:/m\n2:cpu,cpuacct:/docker/1\n1:cpuset:/",
        V1,
        {"cpu,cpuacct/docker/1/cpu.cfs_quota_us": "250000", "cpu,cpuacct/docker/1/cpu.cfs_period_us": "100000"},
        2.5,
    ),
    "version 1, no limit": (
        "2:cpu,cpuacct:/a/b",
        V1,
        {
            "cpu,cpuacct/a/b/cpu.cfs_quota_us": "-1",
            "cpu,cpuacct/a/b/cpu.cfs_period_us": "100000",
            "cpu,cpuacct/a/cpu.cfs_quota_us": "400000",
            "cpu,cpuacct/a/cpu.cfs_period_us": "100000",
        },
        4,
    ),
    "a container that sees its own group only": (
        "2:cpu,cpuacct:/docker/1",
        V1.replace("0:29 /", "0:29 /docker/1"),
        {"cpu,cpuacct/cpu.cfs_quota_us": "100000", "cpu,cpuacct/cpu.cfs_period_us": "50000"},
        2,
    ),
    "the same, a group in it": ("0::/docker/1/a", V2.replace("0:28 /", "0:28 /docker/1"), {"a/cpu.max": "1 1"}, 1),
    "a path outside of what is seen": ("0::/../x", V2, {"cpu.max": "300000 100000"}, 3),
    "both versions": (
        "2:cpu:/a\n0::/b",
        f"{V1.replace(',cpuacct', '')}\n{V2.replace('cgroup rw', 'cgroup/unified rw')}",
        {"cpu/a/cpu.cfs_quota_us": "600000", "cpu/a/cpu.cfs_period_us": "100000", "unified/b/cpu.max": "max 100000"},
        6,
    ),
    "a mount with a blank": (
        "0::/x",
        V2.replace("/sys/fs/cgroup", r"/sys/fs/cgroup/my\040own"),
        {"my own/x/cpu.max": "5 2"},
        2.5,
    ),
    "a name with a colon": ("0::/a:b", V2, {"a:b/cpu.max": "5 2"}, 2.5),
    "no number": ("0::/", V2, {"cpu.max": "many 100000"}, None),
    "half a file": ("0::/", V2, {"cpu.max": "100000"}, None),
    "a period of 0": ("0::/", V2, {"cpu.max": "100000 0"}, None),
    "nonsense": ("0::\nx\n\n:::", f"- -\n1 2 - cgroup2\n3 4 0:1 / - cgroup2\n{V1}", {"cpu.max": "100000 100000"}, None),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_quotas(tmp_path: Path, case: str) -> None:
    *parts, want = CASES[case]
    assert cpu_quota(tree(tmp_path, *parts)) == want  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("quota", "want"), [("max", 8), ("1", 1), ("100000", 1), ("199999", 1), ("350000", 3), ("9900000", 8)]
)
def test_threads_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, want: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert targets.default_threads(tree(tmp_path, "0::/pod", V2, {"pod/cpu.max": f"{quota} 100000"})) == want


def test_where_there_are_no_groups(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None
    assert 1 <= targets.default_threads() <= (os.cpu_count() or 1)
    assert memory_limit(tmp_path) is None


GB = 10**9
STAT = "anon 1\ninactive_file {0}\nactive_file 5\ntotal_inactive_file {1}\ntotal_active_file 3\nfile 99"
MEMORY = {
    "none": ("0::/pod", V2, {"pod/memory.max": "max", "pod/memory.current": "5", "pod/memory.stat": "anon 5"}, None),
    "version 2": (
        "0::/pod",
        V2,
        {"pod/memory.max": f"{4 * GB}", "pod/memory.current": f"{GB}", "pod/memory.stat": "anon 1"},
        MemoryLimit(4 * GB, 3 * GB),
    ),
    "what can be dropped is free": (
        "0::/pod",
        V2,
        {"pod/memory.max": f"{4 * GB}", "pod/memory.current": f"{3 * GB}", "pod/memory.stat": STAT.format(GB, 0)},
        MemoryLimit(4 * GB, 2 * GB + 5),
    ),
    "the group that leaves least": (
        "0::/pod/app",
        V2,
        {
            "pod/app/memory.max": f"{2 * GB}", "pod/app/memory.current": "0", "pod/app/memory.stat": "",
            "pod/memory.max": f"{9 * GB}", "pod/memory.current": f"{8 * GB}", "pod/memory.stat": "",
        },
        MemoryLimit(9 * GB, GB),
    ),
    "version 1": (
        "4:memory:/m\n2:cpu,cpuacct:/docker/1",
        V1,
        {
            "memory/m/memory.limit_in_bytes": f"{4 * GB}",
            "memory/m/memory.usage_in_bytes": f"{2 * GB}",
            "memory/m/memory.stat": STAT.format(7, GB),
            "memory/memory.limit_in_bytes": "9223372036854771712",
            "memory/memory.usage_in_bytes": f"{8 * GB}",
            "memory/memory.stat": "",
        },
        MemoryLimit(4 * GB, 3 * GB + 3),
    ),
    "more held than allowed": (
        "0::/",
        V2,
        {"memory.max": "100", "memory.current": "150", "memory.stat": ""},
        MemoryLimit(100, 0),
    ),
    "no number": ("0::/", V2, {"memory.max": "much", "memory.current": "1", "memory.stat": ""}, None),
}  # fmt: skip


@pytest.mark.parametrize("case", MEMORY)
def test_memory(tmp_path: Path, case: str) -> None:
    *parts, want = MEMORY[case]
    assert memory_limit(tree(tmp_path, *parts)) == want  # type: ignore[arg-type]
