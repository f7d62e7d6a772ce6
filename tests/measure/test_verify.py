"""`bitgen verify`: green where all is right, and red, naming the culprit, where something is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from bitgen import cli
from bitgen.checkpoints import reference
from bitgen.cli import progress
from bitgen.compile import checksum, clang, library, pack
from bitgen.data import shipped_path
from bitgen.errors import BitgenError, UnsupportedError
from bitgen.gguf.reader import read_gguf
from bitgen.headers import constants
from bitgen.kernels import plan
from bitgen.kernels.formats import FORMATS, Format
from bitgen.measure import verify
from bitgen.measure.receipt import Receipt

SCALES = constants("core/model.h", "bg_parts")["SCALES"]


@pytest.fixture
def best_level_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """One level: the others are tried by the test of the command."""
    best = library.host_isas()[:1]
    monkeypatch.setattr(library, "host_isas", lambda *_: best)


def failed(receipt: Receipt) -> set[str]:
    assert not receipt.ok
    return {check.group for check in receipt.checks if not check.ok}


def test_the_command_and_its_receipt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, told = tmp_path / "receipt.json", dict[str, int]()
    monkeypatch.setattr(progress.Wait, "listen", lambda _, stage, done, total: told.setdefault(stage, total))
    out = CliRunner().invoke(cli.main, ["verify", "-o", str(path)])
    assert out.exit_code == 0, out.output
    for level in library.host_isas():
        assert told[f"checking {level} kernels"] > 1 and f"computing logits on {level}, as planned" in told
    assert {"hashing the file", "comparing with the NumPy reference"} <= told.keys()
    receipt = json.loads(path.read_text())
    assert receipt["verdict"] == "pass" and set(receipt["levels"]["plans"]) == set(library.host_isas())
    assert {check["group"] for check in receipt["checks"]} == {"files", "kernels", "same bits", "choices", "reference"}
    subjects = {check["subject"] for check in receipt["checks"]}
    assert {f"scalar, {name}" for name, form in FORMATS.items() if not (form.grouped or form.binary)} < subjects
    assert receipt["model"]["bytes"] == shipped_path().stat().st_size


def test_damage_in_the_cache_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte of a packed model where no start looks, and one of a library that another model uses."""
    monkeypatch.setenv("BITGEN_CACHE", str(tmp_path))
    packed = tmp_path / "m.bgpk"
    pack.write(packed, read_gguf(shipped_path()), plan.of_model(read_gguf(shipped_path()).shape, "scalar"))
    built = [clang.build(name, {"a.c": "int a;\n"}, [clang.Unit("a.c", "a.o")], {}) for name in ("one", "other")]
    assert all(check.ok for check in verify._files(packed, lambda *_: None))
    raw = bytearray(packed.read_bytes())
    for at in (checksum.SAMPLE + 4096, len(raw) // 2 + 4096):
        raw[at] ^= 1
    packed.write_bytes(raw)
    raw = bytearray(built[1].path.read_bytes())
    raw[-1] ^= 1
    built[1].path.write_bytes(raw)
    wrong = {check.subject: check.detail for check in verify._files(packed, lambda *_: None) if not check.ok}
    assert set(wrong) == {"m.bgpk", built[1].folder.name} and "made anew" in wrong["m.bgpk"]
    assert not packed.exists()


def test_a_wrong_kernel_is_named(best_level_only: None, monkeypatch: pytest.MonkeyPatch) -> None:
    pack_format = Format.pack

    def flip(self: Format, codes: Any, layout: Any, scales: Any = None) -> Any:
        if self.name == "i2_s" and codes.shape[0] > 1000:
            codes = codes.copy()
            codes[5, 7] = -codes[5, 7] if codes[5, 7] else 1
        return pack_format(self, codes, layout, scales)

    monkeypatch.setattr(Format, "pack", flip)
    receipt = verify.verify(shipped_path())
    wrong = [check for check in receipt.checks if check.group == "kernels" and not check.ok]
    assert wrong and all(check.subject.startswith("bg_i2_s") and "row 5" in check.detail for check in wrong)


def test_a_level_with_other_bits_is_noticed(best_level_only: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One scale in one format's packed file is off by one ulp: too little for anything but ==."""
    sections = pack._sections

    def nudge(checkpoint: Any, lookup: Any, head: Any, dense: Any) -> Any:
        change = lookup.matrices["o"].layout.format in ("tl1", "tl2")
        for section in sections(checkpoint, lookup, head, dense):
            if change and isinstance(section, list) and section[0].size == SCALES:  # of a layer
                section, change = [np.nextafter(section[0], np.float32(np.inf))], False
            yield section

    monkeypatch.setattr(pack, "_sections", nudge)
    assert failed(verify.verify(shipped_path())) == {"same bits"}


def test_a_wrong_model_is_noticed(best_level_only: None, monkeypatch: pytest.MonkeyPatch) -> None:
    activate = reference.activate
    other = {"relu2": "silu", "silu": "relu2"}
    monkeypatch.setattr(reference, "activate", lambda x, name: activate(x, other[name]))
    assert failed(verify.verify(shipped_path())) == {"reference"}


def test_a_large_model_is_compared_in_a_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = read_gguf(shipped_path())
    assert verify.cut(checkpoint) is checkpoint
    monkeypatch.setattr(verify, "CUT_WEIGHTS", 4_000_000)
    monkeypatch.setattr(verify, "CUT_VOCAB", 100)
    small = verify.cut(checkpoint)
    assert 1 <= small.shape.layers < checkpoint.shape.layers and small.shape.vocab == 100
    assert small.shape.matrices == checkpoint.shape.matrices
    assert reference.forward(small, [1, 2]).shape == (2, 100)


@pytest.mark.transformers
def test_against_transformers(best_level_only: None, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    import hf_models
    from hf_models import Tiny

    from bitgen.convert import convert

    folder = hf_models.save(Tiny("BitNetForCausalLM", "autobitlinear"), tmp_path / "hf")
    convert(folder, tmp_path / "m.gguf")
    assert verify.verify(tmp_path / "m.gguf", f"hf:{folder}").ok
    other = hf_models.save(Tiny("BitNetForCausalLM", "autobitlinear", seed=5), tmp_path / "other")
    assert failed(verify.verify(tmp_path / "m.gguf", f"hf:{other}")) == {"against"}


def test_what_cannot_be_compared() -> None:
    with pytest.raises(UnsupportedError, match="hf:DIR"):
        verify._transformers("somewhere")
    pytest.importorskip("transformers")
    with pytest.raises(BitgenError, match="cannot load"):
        verify._transformers("hf:/nonexistent/model")
