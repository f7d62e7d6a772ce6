"""The sizes of the ladder: what their names say, and nothing that users meet among models."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bitgen.checkpoints import ladder, presets
from bitgen.errors import UnsupportedError
from bitgen.gguf.writer import tensor_table
from bitgen.kernels import plan
from bitgen.targets import TARGETS


@pytest.mark.parametrize("size", ladder.sizes())
def test_a_rung_has_as_many_parameters_as_its_name_says(size: str) -> None:
    shape = ladder.load(size)
    number, unit = re.fullmatch(r"([\d.]+)([MB])", size).groups()  # type: ignore[union-attr]
    assert ladder.parameters(shape) == pytest.approx(float(number) * {"M": 1e6, "B": 1e9}[unit], rel=0.045)
    assert (shape.name, shape.architecture, shape.group, shape.tied) == (f"ladder-{size}", "bitnet", 0, True)
    assert (shape.kv_heads, shape.heads * shape.head_dim) == (shape.heads, shape.hidden)
    assert tensor_table(shape, "i2_s")


def test_the_sizes_of_the_report_are_there() -> None:
    report = ["125M", "350M", "700M", "1B", "1.5B", "2.7B", "3.8B", "7B", "13B", "30B", "70B", "100B"]
    assert [size for size in ladder.sizes() if size != "1.3B"] == report
    counts = [ladder.parameters(ladder.load(size)) for size in ladder.sizes()]
    assert counts == sorted(counts)


def test_two_rungs_are_models_that_exist() -> None:
    for size, name in (("700M", "0.7B"), ("1.3B", "xl")):
        rung, model = ladder.load(size), presets.load(name)
        assert (rung.matrices, rung.layers, rung.heads) == (model.matrices, model.layers, model.heads)


@pytest.mark.parametrize("isa", TARGETS)
def test_every_level_has_kernels_for_every_rung(isa: str) -> None:
    for size in ladder.sizes():
        assert len(plan.of_model(ladder.load(size), isa).matrices) == 4


def test_rungs_are_found_by_name_and_not_listed() -> None:
    assert presets.load("ladder-7B") == presets.load(" LADDER-7b ") == ladder.load("7b")
    assert presets.hub_id("ladder-7B") is None
    assert not any(map(ladder.is_rung, presets.names()))
    for wrong in ("ladder-9B", "ladder-"):
        with pytest.raises(UnsupportedError, match=r"on the ladder; known: 125M, 350M.*100B"):
            presets.load(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["i2_s", "tq2_0", "t5", "packed"])
def test_the_largest_rung_is_made_in_little_memory(tmp_path: Path, form: str) -> None:
    """One of its 72 layers: memory follows the largest matrix, and not the layers."""
    code = (
        "import dataclasses, re, sys\n"
        "from pathlib import Path\n"
        "from bitgen.checkpoints import ladder\n"
        "from bitgen.checkpoints.synth import SynthCheckpoint\n"
        "from bitgen.compile import pack\n"
        "from bitgen.gguf.writer import write_gguf\n"
        "from bitgen.kernels import plan\n"
        "to, form = Path(sys.argv[1]), sys.argv[2]\n"
        "made = SynthCheckpoint(dataclasses.replace(ladder.load('100B'), layers=1))\n"
        "if form == 'packed':\n"
        "    pack.write(to, made, plan.of_model(made.shape, 'scalar'), 'certified')\n"
        "else:\n"
        "    write_gguf(to, made, form)\n"
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "m"), form]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2 * 1024**2  # KiB
