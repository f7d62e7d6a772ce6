"""A conversion holds the same model, survives an interruption, and needs little memory."""

from __future__ import annotations

import errno
import json
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from jinja2.sandbox import SandboxedEnvironment

torch = pytest.importorskip("torch", reason="the checkpoints are made with PyTorch")

import hf_models  # noqa: E402
from hf_models import (  # noqa: E402
    ATTN_Q,
    BITNET,
    LLAMA,
    ONEBIT,
    TABLES,
    VOCAB,
    Tiny,
    edit_config,
    edit_tensors,
)
from tokenizers import Tokenizer, processors  # noqa: E402

from bitgen.checkpoints.tensors import is_ternary, tensor_shapes  # noqa: E402
from bitgen.convert import HfCheckpoint, convert  # noqa: E402
from bitgen.errors import BitgenError, FormatError, UnsupportedError  # noqa: E402
from bitgen.gguf.reader import read_gguf  # noqa: E402
from bitgen.gguf.writer import FILE_TYPES  # noqa: E402
from bitgen.spec import Progress  # noqa: E402

# ---- what is written ----


@pytest.mark.parametrize("tiny", [BITNET, LLAMA, ONEBIT], ids=lambda tiny: tiny.architecture)
@pytest.mark.parametrize("type", ["i2_s", "tq2_0"])
def test_the_gguf_holds_the_same_model(tiny: Tiny, type: str, tmp_path: Path) -> None:
    tiny = replace(tiny, hidden=256, heads=4, kv_heads=2)
    directory = hf_models.save(tiny, tmp_path / "model")
    seen: list[tuple[int, int]] = []
    convert(directory, tmp_path / "m.gguf", type, progress=lambda done, total: seen.append((done, total)))
    written, source = read_gguf(tmp_path / "m.gguf"), HfCheckpoint(directory)
    assert written.shape == source.shape
    for name in tensor_shapes(source.shape):
        if is_ternary(name):
            (codes, scale), (want, want_scale) = written.ternary(name), source.ternary(name)
            assert (codes == want).all() and np.float32(scale) == np.float32(want_scale)
        else:
            assert (written.dense(name) == source.dense(name)).all()
    assert written.metadata["general.name"] == "model"
    assert written.metadata["tokenizer.chat_template"].startswith("{% for m in messages")
    assert len(written.metadata["tokenizer.ggml.tokens"]) == VOCAB
    assert seen and seen[-1][0] == seen[-1][1]


LEGACY = (
    "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}{% if message['role'] == 'user' %}"
    "{{ 'Human: ' + message['content'] + '\n\nBITNETAssistant: ' + eos_token }}{% endif %}{% endfor %}"
)


def test_the_wrong_template_of_2b4t_is_put_right(directory: Path, tmp_path: Path) -> None:
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": LEGACY}))
    convert(directory, tmp_path / "m.gguf")
    template = read_gguf(tmp_path / "m.gguf").metadata["tokenizer.chat_template"]
    messages = [{"role": "system", "content": "Be brief. "}, {"role": "user", "content": "Hi"}]
    text = SandboxedEnvironment().from_string(template)
    asked = text.render(messages=messages, bos_token="<B>", eos_token="<E>", add_generation_prompt=True)
    assert asked == "<B>System: Be brief.<|eot_id|>User: Hi<|eot_id|>Assistant: "
    convert(tmp_path / "m.gguf", tmp_path / "again.gguf")
    assert read_gguf(tmp_path / "again.gguf").metadata["tokenizer.chat_template"] == template


# ---- interrupted, and in little memory ----


class Stop(BaseException):
    """As a Ctrl-C would."""


def stop_at(share: float) -> Progress:
    def progress(done: int, total: int) -> None:
        if done > share * total:
            raise Stop

    return progress


def reads(checkpoint: HfCheckpoint, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The matrices that are read from now on."""
    read: list[str] = []
    inner = checkpoint.ternary
    monkeypatch.setattr(checkpoint, "ternary", lambda name: read.append(name) or inner(name))
    return read


@pytest.mark.parametrize("type", [type for type, known in FILE_TYPES.items() if 0 in known.groups and not known.binary])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.8])
def test_an_interrupted_conversion_goes_on(
    tmp_path: Path, type: str, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = hf_models.save(replace(BITNET, hidden=256, heads=4, layers=2), tmp_path / "model")
    convert(directory, tmp_path / "whole.gguf", type)
    out = tmp_path / "m.gguf"
    with pytest.raises(Stop):
        convert(directory, out, type, progress=stop_at(share))
    assert not out.exists()
    checkpoint, steps = HfCheckpoint(directory), []
    read = reads(checkpoint, monkeypatch)
    convert(checkpoint, out, type, progress=lambda done, total: steps.append((done, total)))
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert len(read) < 10 or share < 0.8
    assert steps[-1][0] == steps[-1][1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.gguf", "model", "whole.gguf"]


def spoil_log(log: Path, part: Path) -> None:
    log.write_text(log.read_text()[:-20])


def spoil_part(log: Path, part: Path) -> None:
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)


def cut_part(log: Path, part: Path) -> None:
    part.write_bytes(part.read_bytes()[: part.stat().st_size // 3])


def lose_part(log: Path, part: Path) -> None:
    part.unlink()


def lose_log(log: Path, part: Path) -> None:
    log.unlink()


def empty_log(log: Path, part: Path) -> None:
    log.write_bytes(b"")


@pytest.mark.parametrize("spoil", [spoil_log, spoil_part, cut_part, lose_part, lose_log, empty_log])
def test_what_an_interruption_left_is_verified(
    directory: Path, tmp_path: Path, spoil: Callable[[Path, Path], None]
) -> None:
    convert(directory, tmp_path / "whole.gguf")
    with pytest.raises(Stop):
        convert(directory, tmp_path / "m.gguf", progress=stop_at(0.7))
    spoil(tmp_path / ".m.gguf.part.log", tmp_path / ".m.gguf.part")
    convert(directory, tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def other_type(directory: Path) -> str:
    return "t5"


def other_weights(directory: Path) -> str:
    edit_tensors(directory, lambda t: t[f"{ATTN_Q}.weight"].fill_(0b01010101))
    return "i2_s"


def other_tokenizer(directory: Path) -> str:
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": "another"}))
    return "i2_s"


@pytest.mark.parametrize("change", [other_type, other_weights, other_tokenizer])
def test_a_changed_source_starts_over(
    directory: Path, tmp_path: Path, change: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Stop):
        convert(directory, tmp_path / "m.gguf", progress=stop_at(0.9))
    type = change(directory)
    checkpoint = HfCheckpoint(directory)
    read = reads(checkpoint, monkeypatch)
    convert(checkpoint, tmp_path / "m.gguf", type)
    assert len(read) == 7
    convert(directory, tmp_path / "whole.gguf", type)
    assert (tmp_path / "m.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_two_conversions_into_one_file_do_not_mix(directory: Path, tmp_path: Path) -> None:
    refused = []

    def another(done: int, total: int) -> None:
        with pytest.raises(BitgenError, match="another process"):
            convert(directory, tmp_path / "m.gguf")
        refused.append(done)

    convert(directory, tmp_path / "m.gguf", progress=another)
    assert refused and read_gguf(tmp_path / "m.gguf").ternary("blk.0.attn_q.weight")


def test_a_full_disk_keeps_what_is_done(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(done: int, total: int) -> None:
        if done > 0.9 * total:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(BitgenError, match=r"m\.gguf: No space left on device; what is done is kept"):
        convert(directory, tmp_path / "m.gguf", progress=full)
    checkpoint = HfCheckpoint(directory)
    read = reads(checkpoint, monkeypatch)
    convert(checkpoint, tmp_path / "m.gguf")
    assert 0 < len(read) < 7


@pytest.mark.parametrize("online", [False, True])
def test_memory_is_that_of_one_matrix(tmp_path: Path, online: bool) -> None:
    """Codes of the largest matrix, and pieces; not the 16 MiB of its float32 masters, nor the head's."""
    large = Tiny("BitNetForCausalLM", "autobitlinear", hidden=512, inter=8192, layers=1, heads=4, kv_heads=2,
                 tied=False, online=online)  # fmt: skip
    directory = hf_models.save(large, tmp_path / "model")
    table = torch.zeros(32768, 512)
    edit_tensors(directory, lambda t: t.update({f"{name}.weight": table.clone() for name in TABLES}))
    edit_config(directory, vocab_size=32768)
    checkpoint = HfCheckpoint(directory)
    assert checkpoint.metadata["tokenizer.ggml.tokens"]
    tracemalloc.start()
    convert(checkpoint, tmp_path / "m.gguf")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 4 << 20 < peak < 24 << 20  # the codes of 512 x 8192 weights are 4 MiB, a piece of floats is 4 MiB


def test_an_embedding_model(tmp_path: Path) -> None:
    """Its pooling, and the token that its tokenizer puts after a text, go into the GGUF."""
    tiny = replace(BITNET, architecture="Qwen3Model", act="silu", input_norms=True)
    directory = hf_models.save(tiny, tmp_path / "model")
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    end = ("<|begin_of_text|>", VOCAB - 2)  # not the one that the settings name
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {end[0]}", special_tokens=[end])
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 128, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    convert(directory, tmp_path / "m.gguf")
    keys = read_gguf(tmp_path / "m.gguf").metadata
    assert keys["qwen3.pooling_type"] == 1
    assert keys["tokenizer.ggml.add_eos_token"] is True and keys["tokenizer.ggml.eos_token_id"] == VOCAB - 2
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling | {"pooling_mode_cls_token": True}))
    with pytest.raises(UnsupportedError, match="pools by"):
        _ = HfCheckpoint(directory).metadata


def test_what_bitgen_would_not_open_is_not_written(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own reader has the last word, before any weight is read; what was there stays."""
    checkpoint = HfCheckpoint(directory)
    read = reads(checkpoint, monkeypatch)
    keys = dict(checkpoint.metadata)
    (tmp_path / "m.gguf").write_bytes(b"before")
    for wrong, message in (
        ({"tokenizer.ggml.tokens": [*keys["tokenizer.ggml.tokens"], "more"]}, f"{VOCAB + 1} tokens, but token_embd"),
        ({"tokenizer.ggml.pre": "of another model"}, "tokenizer.ggml.pre is 'of another model'"),
    ):
        monkeypatch.setitem(vars(checkpoint), "metadata", keys | wrong)
        with pytest.raises(BitgenError, match=rf"m\.gguf is not written: {message}"):
            convert(checkpoint, tmp_path / "m.gguf")
    assert not read and (tmp_path / "m.gguf").read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gguf", "model"]


def test_left_out_tokens_are_named(directory: Path, tmp_path: Path) -> None:
    """A file whose tokenizer has more tokens than the embedding has rows is written, and runs."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.add_special_tokens(["<image_soft_token>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    checkpoint = HfCheckpoint(directory)
    assert "left out '<image_soft_token>'" in str(checkpoint.warning)
    convert(checkpoint, tmp_path / "m.gguf")
    assert len(read_gguf(tmp_path / "m.gguf").metadata["tokenizer.ggml.tokens"]) == VOCAB


def test_a_failed_conversion_leaves_no_file(directory: Path, tmp_path: Path) -> None:
    edit_tensors(directory, lambda t: t["model.norm.weight"].fill_(float("nan")))
    with pytest.raises(FormatError, match=r"model\.norm\.weight holds NaN"):
        convert(directory, tmp_path / "m.gguf")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
