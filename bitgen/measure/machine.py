"""What this machine says of itself: its CPU's name and instructions, and its memory."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from bitgen.cgroups import MemoryLimit, memory_limit
from bitgen.kernels.plan import cpu_name, cpu_title
from bitgen.spec import Target

ROOT = Path("/")

_CPUINFO_NAMES = {
    "avx512vnni": "avx512_vnni",
    "avxvnni": "avx_vnni",
    "amx-tile": "amx_tile",
    "amx-int8": "amx_int8",
    "dotprod": "asimddp",
}
"""The compiler's name of an extension -> Linux's in /proc/cpuinfo, where it is another."""


def cpu_brand(root: Path = ROOT) -> str:
    """The name under which the CPU is sold, and that of the board where it has one.

    root: of the file system that has /proc and /sys.
    """
    if sys.platform == "darwin":
        asked = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, timeout=5, check=False
        )
        return asked.stdout.strip() or platform.machine()
    if sys.platform == "win32":
        import winreg

        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"HARDWARE\DESCRIPTION\System\CentralProcessor\0") as key:
            return str(winreg.QueryValueEx(key, "ProcessorNameString")[0]).strip()
    cpuinfo = _text(root / "proc/cpuinfo")
    title, found = cpu_title(cpu_name(cpuinfo)), re.search(r"^Model\s*:\s*(\S.*)$", cpuinfo, re.M)
    board = found[1].strip() if found else _text(root / "proc/device-tree/model").strip("\0\n ")
    return f"{title} ({board})" if board else title


def instructions(root: Path = ROOT) -> frozenset[str]:
    """The extensions that the CPU has by /proc/cpuinfo; none where the system does not list them."""
    lists: list[str] = re.findall(r"^(?:flags|Features)\s*:\s*(.*)$", _text(root / "proc/cpuinfo"), re.M)
    return frozenset.intersection(*(frozenset(words.split()) for words in lists)) if lists else frozenset()


def needs(target: Target) -> list[str]:
    """The extensions that an ISA level needs beyond its architecture's baseline, as Linux names them."""
    words = re.findall(r"(?:-m(?!cpu)|\+)([\w-]+)", " ".join(target.flags))
    return [_CPUINFO_NAMES.get(word, word) for word in words]


def grants_tiles() -> bool:
    """Whether Linux lets this process use AMX tiles: asked as templates/probe/amx.c.j2 asks."""
    arch_prctl, request, tile_data = 158, 0x1023, 18
    return sys.platform == "linux" and bool(ctypes.CDLL(None).syscall(arch_prctl, request, tile_data) == 0)


@dataclass(frozen=True)
class Memory:
    """Bytes of the machine, and of its control group if that has a limit; `available` is what a model may take."""

    total: int
    available: int
    limit: MemoryLimit | None


def memory(root: Path = ROOT) -> Memory | None:
    """How much there is, by Linux and its control groups, or by Windows; None where it is not known."""
    found = re.findall(r"^(MemTotal|MemAvailable):\s*(\d+) kB$", _text(root / "proc/meminfo"), re.M)
    kilobytes = {name: int(number) for name, number in found}
    if "MemTotal" in kilobytes:
        total, available = (1024 * kilobytes.get(name, 0) for name in ("MemTotal", "MemAvailable"))
    elif sys.platform == "win32":
        total, available = _windows_memory()
    elif hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:  # macOS does not say what is available
        total = available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        return None
    limit = memory_limit(root)
    return Memory(total, min(available, limit.free) if limit else available, limit)


def _windows_memory() -> tuple[int, int]:
    """Bytes of the machine, and those that are free."""

    class Status(ctypes.Structure):
        _fields_ = [
            ("length", ctypes.c_uint32),
            ("load", ctypes.c_uint32),
            *(
                (name, ctypes.c_uint64)
                for name in ("total", "free", "pages", "pages_free", "room", "room_free", "more")
            ),
        ]

    status = Status(length=ctypes.sizeof(Status))
    ctypes.CDLL("kernel32").GlobalMemoryStatusEx(ctypes.byref(status))
    return int(status.total), int(status.free)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
