"""What `info` says of a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import places
import pytest
from gguf_files import SHAPES, TINY, TINY_LLAMA, changed

from bitgen.cli.facts import lines
from bitgen.errors import FormatError
from bitgen.gguf import info

DATA = places.DATA


def test_a_file_of_bitnet_cpp() -> None:
    facts = info.describe(DATA / "bitnetcpp-i2_s.gguf")
    assert json.loads(json.dumps(facts)) == facts
    assert facts["architecture"] == "bitnet" and facts["bytes"] == 349088
    assert facts["tensors"] == {"I2_S": 7, "F32": 5, "F16": 1}
    assert (facts["activation"], facts["activation_reason"]) == ("silu", "architecture bitnet")
    assert (facts["layers"], facts["hidden"], facts["intermediate"], facts["vocabulary"]) == (1, 256, 640, 320)
    assert (facts["heads"], facts["head_dim"], facts["kv_heads"]) == (4, 64, 2)
    assert (facts["rope_interleaved"], facts["rope_theta"], facts["head_tied"]) == (False, 500000, True)
    assert facts["ternary_weights"] == 688128
    assert facts["bits_per_ternary_weight"] == round(8 * (688128 / 4 + 7 * 32) / 688128, 3)
    assert facts["tokenizer"] == "byte-level BPE (default)"


@pytest.mark.parametrize(("type", "bits"), [("i2_s", 2.003), ("tq1_0", 1.688), ("tq2_0", 2.062), ("t5", 1.618)])
def test_bits_per_weight(tmp_path: Path, type: str, bits: float) -> None:
    facts = info.describe(changed(tmp_path / "m.gguf", lambda m, t: None, type=type))
    assert abs(facts["bits_per_ternary_weight"] - bits) < 0.002
    assert facts["activation_reason"] == "the key bitnet-b1.58.hidden_activation"


def test_a_llama_file(tmp_path: Path) -> None:
    facts = info.describe(changed(tmp_path / "m.gguf", lambda m, t: None, shape=TINY_LLAMA))
    assert facts["rope_interleaved"] and not facts["head_tied"] and facts["layer_norms"] == ["attn_norm", "ffn_norm"]


def test_a_hybrid_file(tmp_path: Path) -> None:
    path = changed(tmp_path / "m.gguf", lambda m, t: None, shape=SHAPES["qwen35 rotated"])
    facts = info.describe(path)
    assert json.loads(json.dumps(facts)) == facts and facts["attention_gate"]
    assert facts["delta"]["value_heads"] == 4 and facts["hadamard"] == {"block": 64, "signed": True, "regrouped": True}
    text = dict(line.split("  ", 1) for line in lines(facts))
    assert text["attention"].strip() == "a gate for each head"
    of = "Gated DeltaNet, in all but every 4th: 4 heads of 32 x 64, 2 for queries and keys"
    assert text["layers that do not attend"].strip() == of
    assert text["rotation"].strip() == "Hadamard, blocks of 64 columns, with signs"


def test_a_file_that_cannot_run_is_described_with_the_reason(tmp_path: Path) -> None:
    def change(metadata: dict, tensors: dict) -> None:
        shape, _, data = tensors["blk.0.attn_q.weight"]
        tensors["blk.0.attn_q.weight"] = (shape, 38, data)  # without --tl-tiles

    facts = info.describe(changed(tmp_path / "m.gguf", change))
    assert "pass --tl-tiles 256x256=" in facts["unsupported"] and facts["tensors"]["TL1"] == 1


def test_an_architecture_that_is_no_text(tmp_path: Path) -> None:
    facts = info.describe(changed(tmp_path / "m.gguf", lambda m, t: m.update({"general.architecture": np.zeros(2)})))
    assert json.loads(json.dumps(facts))["architecture"] is None and "has 2 values" in facts["unsupported"]


def test_a_file_without_a_tokenizer(tmp_path: Path) -> None:
    facts = info.describe(changed(tmp_path / "m.gguf", lambda m, t: m.pop("tokenizer.ggml.tokens"), shape=TINY))
    assert facts["tokenizer"] is None and facts["tokenizer_error"].startswith("tokenizer.ggml.tokens")


def test_a_broken_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(FormatError):
        info.describe(tmp_path / "m.gguf")
