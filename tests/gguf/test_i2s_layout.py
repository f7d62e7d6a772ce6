"""The check of the I2_S layout: it sees through a trained model in any layout, and says nothing of random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from gguf_files import TINY, changed, contents, store

from bitgen import api, cli
from bitgen.data import shipped_path
from bitgen.gguf import blocks, i2s_layout
from bitgen.gguf.container import Container
from bitgen.gguf.reader import I2sLayout, read_gguf
from bitgen.kernels import layout

SHIPPED = shipped_path()


def rewritten(source: Path, to: Path, i2s_layout: str) -> Path:
    """The same model with its I2_S tensors in another layout: every tensor keeps its place and its scale."""
    raw, checkpoint = bytearray(source.read_bytes()), read_gguf(source)
    for tensor in Container(source).tensors.values():
        if tensor.type_name == "I2_S":
            codes, _ = checkpoint.ternary(tensor.name)
            packed = layout.pack_i2_s(codes.reshape(1, -1), 1, blocks.i2s_block(i2s_layout, codes.shape[1]))
            raw[tensor.offset : tensor.offset + packed.size] = packed.tobytes()
    to.write_bytes(raw)
    return to


@pytest.mark.parametrize("written", blocks.I2S_LAYOUTS)
def test_a_trained_model_in_every_layout(tmp_path: Path, written: I2sLayout) -> None:
    path = rewritten(SHIPPED, tmp_path / "m.gguf", written)
    for declared in blocks.I2S_LAYOUTS:
        said = i2s_layout.warning(read_gguf(path, i2s_layout=declared))  # type: ignore[arg-type]
        if declared == written:
            assert said is None
        else:
            assert said is not None and f"as {written}, not as {declared}" in said
            assert said.endswith(f"try --i2s-layout {written}") and str(path) in said
    codes = read_gguf(path, i2s_layout=written).ternary("blk.3.ffn_down.weight")
    want = read_gguf(SHIPPED).ternary("blk.3.ffn_down.weight")
    assert np.array_equal(codes[0], want[0]) and codes[1] == want[1]


@pytest.mark.parametrize("declared", blocks.I2S_LAYOUTS)
def test_random_weights_are_no_evidence(tmp_path: Path, declared: I2sLayout) -> None:
    for name, shape in (("tiny", TINY), ("odd", replace(TINY, intermediate=544))):
        path = changed(tmp_path / f"{name}.gguf", lambda m, t: None, shape=shape)
        checkpoint = read_gguf(path, i2s_layout=declared)
        assert all(i2s_layout.evidence(checkpoint, each) < 30 for each in blocks.I2S_LAYOUTS)
        assert i2s_layout.warning(checkpoint) is None


def test_other_types_are_not_looked_at(tmp_path: Path) -> None:
    metadata, tensors = contents(type="tq2_0")
    assert i2s_layout.warning(read_gguf(store(tmp_path / "m.gguf", metadata, tensors))) is None


def test_no_variation_is_no_evidence() -> None:
    assert i2s_layout._correlation(np.ones(5), np.arange(5.0)) == 0
    assert i2s_layout._correlation(np.arange(5.0), np.array([1, 2, 3, 4, 1e9])) == pytest.approx(1)


def test_commands_warn_once_on_stderr(tmp_path: Path) -> None:
    path = rewritten(SHIPPED, tmp_path / "m.gguf", "arm")
    out = tmp_path / "out.gguf"
    for command, warned in (
        (["info", str(path)], True),
        (["convert", str(path), "-o", str(out)], True),
        (["convert", str(path), "-o", str(out), "--i2s-layout", "arm"], False),
        (["info", str(out)], False),
    ):
        result = CliRunner().invoke(cli.main, command)
        assert result.exit_code == 0, result.output
        assert result.stderr.count("bitgen: warning") == warned and "warning" not in result.stdout, command
        assert ("--i2s-layout arm" in result.stderr) == warned
    assert "try --i2s-layout arm" in api.info(path)["warning"]
    mine, shipped = Container(out), Container(SHIPPED)
    for name, tensor in shipped.tensors.items():
        assert np.array_equal(mine.bytes_of(mine.tensors[name]), shipped.bytes_of(tensor)), name
