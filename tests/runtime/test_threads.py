"""Threads of the C runtime: no data races, and a division of the work that does each part once."""

from __future__ import annotations

import subprocess
from pathlib import Path

import places
import pytest
import runtime_lab as lab

from bitgen import data, headers, targets
from bitgen.compile import library
from bitgen.compile.clang import COMMON_FLAGS, find_compiler


@pytest.mark.parametrize(("driver", "more"), [("threads_lab.c", ()), ("batch_lab.c", ("BG_CACHE_F16",))])
def test_no_data_races(driver: str, more: tuple[str, ...]) -> None:
    """Callers in threads of their own, each with sessions of four threads; sequences together; prompts and decoding."""
    if find_compiler(targets.platform_of()).zig:
        pytest.skip("zig has no ThreadSanitizer runtime; install clang")
    bench = lab.bench("wide-heads", 0, "certified", library.host_isas()[:1])
    program = lab.sanitized(bench.artefact.folder, library.host_isas()[0], places.LABS / driver, "thread")
    numbers = [str(headers.constants("bitgen.h", "bg_cache")[name]) for name in more]
    done = subprocess.run([program, bench.packed[0], "4", *numbers], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


def test_what_threads_divide_is_done_once(tmp_path: Path) -> None:
    """Ranges, panels and tokens of products, heads and positions of attention, by more threads than there are parts."""
    runtime, compiler = data.folder("runtime"), find_compiler(targets.platform_of())
    sources = [runtime / file for file in library.runtime_files("core/attention_tasks.c", "core/pool.c", "os/*.c")]
    flags = [*compiler.target_flags(targets.platform_of()), *COMMON_FLAGS, "-O1", f"-I{runtime}", "-pthread"]
    if not compiler.zig:
        flags += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    program = tmp_path / "division_lab"
    subprocess.run([*compiler.command, *flags, places.LABS / "division_lab.c", *sources, "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0 wrong\n", "")
