"""Models of the Hugging Face Hub, from a server of our own: resumed, from the cache, refused with a reason."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the checkpoints are made with PyTorch")

import hf_models  # noqa: E402
from hf_models import BITNET  # noqa: E402
from hub_server import COMMIT, TOKEN, Hub  # noqa: E402

from bitgen.convert import HfCheckpoint  # noqa: E402
from bitgen.gguf.reader import read_gguf  # noqa: E402

REPO = "microsoft/bitnet-b1.58-2B-4T"  # the preset 2B4T's


BESIDE = ("added_tokens.json", "special_tokens_map.json", "generation_config.json")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    folder = hf_models.save(BITNET, tmp_path / "there", shards=2)
    (folder / "README.md").write_text("a card")
    for spaces, name in enumerate(BESIDE):
        (folder / name).write_text("{" + " " * spaces + "}")  # files of one content would be fetched once
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    (folder / "original").mkdir()
    (folder / "original" / "model.safetensors").write_bytes(b"another")
    with Hub(REPO, folder).serve() as hub:
        yield hub


def convert(hub: Hub, source: str, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`bitgen convert` in a process of its own: the library reads its environment when it is imported."""
    command = [sys.executable, "-m", "bitgen", "convert", source, "-o", str(tmp_path / "m.gguf")]
    settings = hub.environment(tmp_path / "home", **environment)
    return subprocess.run(command, env=settings, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("source", [f"hf:{REPO}", "2B4T", f"hf:{REPO}@{COMMIT}"])
def test_a_model_is_downloaded_and_converted(hub: Hub, tmp_path: Path, source: str) -> None:
    """Only what is needed comes; the model's name is the repository's; then the cache serves without a network."""
    run = convert(hub, source, tmp_path)
    assert run.returncode == 0, run.stderr
    assert hub.fetched() == {
        *(f"model-0000{i}-of-00002.safetensors" for i in (1, 2)),
        *("model.safetensors.index.json", "config.json", "tokenizer.json", "tokenizer_config.json", *BESIDE),
    }
    written, want = read_gguf(tmp_path / "m.gguf"), HfCheckpoint(hub.folder)
    assert written.metadata["general.name"] == "bitnet-b1.58-2B-4T"
    (codes, scale), (want_codes, want_scale) = (c.ternary("blk.0.attn_q.weight") for c in (written, want))
    assert np.array_equal(codes, want_codes) and scale == np.float32(want_scale)
    first = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").unlink()
    before = len(hub.asked)
    again = convert(hub, source, tmp_path, HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr
    assert len(hub.asked) == before and (tmp_path / "m.gguf").read_bytes() == first


def test_a_dropped_connection_is_resumed(hub: Hub, tmp_path: Path) -> None:
    """The library keeps what came in chunks of 10 MiB, and asks for the rest."""
    hub.folder = hf_models.save(replace(BITNET, unpacked=True, hidden=512, inter=2048), tmp_path / "large")
    hub.cut = {"model.safetensors": 11 << 20}
    run = convert(hub, f"hf:{REPO}", tmp_path)
    assert run.returncode == 0, run.stderr
    assert hub.ranges("model.safetensors") == [None, f"bytes={10 << 20}-"]
    codes, _ = read_gguf(tmp_path / "m.gguf").ternary("blk.0.ffn_down.weight")
    assert np.array_equal(codes, HfCheckpoint(hub.folder).ternary("blk.0.ffn_down.weight")[0])


def test_a_private_model_needs_the_token(hub: Hub, tmp_path: Path) -> None:
    hub.private = True
    run = convert(hub, f"hf:{REPO}", tmp_path)
    assert run.returncode == 1 and "HF_TOKEN" in run.stderr and "private" in run.stderr
    assert convert(hub, f"hf:{REPO}", tmp_path, HF_TOKEN=TOKEN).returncode == 0


REFUSED: dict[str, tuple[str, dict[str, str], str]] = {
    "no such model": ("hf:nobody/nothing", {}, "there is no such model"),
    "no such revision": (f"hf:{REPO}@v9", {}, "no revision 'v9'"),
    "no id": ("hf:nothing", {}, "is no id"),
    "climbing": ("hf:../..", {}, "is no id"),
    "offline": (f"hf:{REPO}", {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
    "nobody answers": (f"hf:{REPO}", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot be reached"),
    "neither folder nor preset": ("7B4T", {}, "no preset named '7B4T'"),
    "an id without hf:": ("nobody/nothing", {}, "hf:nobody/nothing"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_refusals_say_why(hub: Hub, tmp_path: Path, case: tuple[str, dict[str, str], str]) -> None:
    source, environment, reason = case
    run = convert(hub, source, tmp_path, **environment)
    assert run.returncode == 1 and reason in run.stderr and "Traceback" not in run.stderr, run.stderr
    assert len(run.stderr.splitlines()) == 1 and not (tmp_path / "m.gguf").exists()


def test_a_gated_model_says_where_to_ask(hub: Hub, tmp_path: Path) -> None:
    hub.gated = True
    run = convert(hub, f"hf:{REPO}", tmp_path)
    assert run.returncode == 1 and "access is granted on its web page" in run.stderr


def test_a_gguf_file_of_a_repository_is_a_source(hub: Hub, tmp_path: Path) -> None:
    """By its name, and where there is no checkpoint."""
    first = convert(hub, f"hf:{REPO}", tmp_path)
    assert first.returncode == 0, first.stderr
    (tmp_path / "gguf").mkdir()
    (tmp_path / "m.gguf").rename(tmp_path / "gguf" / "m-i2_s.gguf")
    hub.folder = tmp_path / "gguf"
    hub.commit = "d" * 40
    for source in (f"hf:{REPO}:I2_S", f"hf:{REPO}"):
        run = convert(hub, source, tmp_path)
        assert run.returncode == 0, run.stderr
        assert (tmp_path / "m.gguf").read_bytes() == (hub.folder / "m-i2_s.gguf").read_bytes()
        (tmp_path / "m.gguf").unlink()
