"""What a name means: of each form, the file or the repository; and a sentence for what means nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitgen.convert.names import HubName, meaning
from bitgen.data import shipped_path
from bitgen.errors import BitgenError

NAMES: dict[str, HubName] = {
    "hf:owner/repo": HubName("owner/repo"),
    "HF:owner/repo": HubName("owner/repo"),
    "hf:owner/repo@v1.0": HubName("owner/repo", "v1.0"),
    "hf:owner/repo@refs/pr/1": HubName("owner/repo", "refs/pr/1"),
    "hf:owner/repo:TQ2_0": HubName("owner/repo", None, "TQ2_0"),
    "hf:owner/repo@main:sub/a b.gguf": HubName("owner/repo", "main", "sub/a b.gguf"),
    "hf.co/owner/repo": HubName("owner/repo"),
    "hf.co/owner/repo:i2_s": HubName("owner/repo", None, "i2_s"),
    "https://hf.co/owner/repo/": HubName("owner/repo"),
    "huggingface.co/owner/repo": HubName("owner/repo"),
    "https://huggingface.co/owner/repo?library=x#top": HubName("owner/repo"),
    "http://www.huggingface.co/owner/repo": HubName("owner/repo"),
    "https://huggingface.co/owner/repo/tree/main": HubName("owner/repo", "main"),
    "https://huggingface.co/owner/repo/tree/refs%2Fpr%2F1": HubName("owner/repo", "refs/pr/1"),
    "https://huggingface.co/owner/repo/blob/main/a%20b.gguf": HubName("owner/repo", "main", "a b.gguf"),
    "https://huggingface.co/owner/repo/resolve/main/x/m.gguf?download=true": HubName("owner/repo", "main", "x/m.gguf"),
    "https://huggingface.co/owner/repo/blob/main/README.md": HubName("owner/repo", "main"),
    "2B4T": HubName("microsoft/bitnet-b1.58-2B-4T"),
    "2b4t": HubName("microsoft/bitnet-b1.58-2B-4T"),
    "microsoft/bitnet-b1.58-2B-4T": HubName("microsoft/bitnet-b1.58-2B-4T"),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_on_the_hub(name: str) -> None:
    assert meaning(name) == NAMES[name]
    assert meaning(str(NAMES[name])) == NAMES[name]


REFUSED: dict[str, str] = {
    "hf:": "is no id",
    "hf:nothing": "is no id",
    "hf:../..": "is no id",
    "hf:a/b/c": "is no id",
    "hf:a--b/c": "is no id",
    "hf:owner/repo@../../x": "is no id",
    "hf:owner/repo@/etc": "is no id",
    "hf:owner/repo:": "is no id",
    "hf:owner/repo:\x1b[2J": "is no id",
    "https://huggingface.co/owner": "is no id",
    "owner/repo": "on the Hugging Face Hub: hf:owner/repo",
    "7B4T": "no preset named '7B4T'; did you mean",
    "Bonsai-1.7B": "not on the Hugging Face Hub",
    "model.bin": "no such file or folder",
    "": "no such file or folder",
    "x" * 5000: "no such file or folder",
    "a\0b": "no such file or folder",
}


@pytest.mark.parametrize("name", REFUSED, ids=lambda name: repr(name[:40]))
def test_a_name_that_means_nothing(name: str) -> None:
    with pytest.raises(BitgenError) as refused:
        meaning(name)
    assert REFUSED[name] in str(refused.value)
    assert len(str(refused.value)) < 900 and str(refused.value).isprintable()


@given(st.text())
def test_any_text_is_a_name_or_a_sentence(name: str) -> None:
    try:
        found = meaning(f"hf:{name}")
    except BitgenError:
        return
    assert isinstance(found, HubName) and meaning(str(found)) == found
    assert ".." not in found.repo and not (found.revision or "").startswith(("/", "."))


def test_what_is_there_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert meaning("stories") == meaning("Stories") == shipped_path()
    assert meaning("any.gguf") == Path("any.gguf") and meaning(Path("2B4T")) == Path("2B4T")
    (tmp_path / "2B4T").mkdir()  # an output of `bitgen build` may be called so
    assert meaning("2B4T") == NAMES["2B4T"]
    (tmp_path / "2B4T" / "config.json").touch()
    assert meaning("2B4T") == Path("2B4T")
    (tmp_path / "stories").touch()
    assert meaning("stories") == Path("stories")
    (tmp_path / "folder").mkdir()
    with pytest.raises(BitgenError, match=r"a folder without a config.json; name a GGUF file in it"):
        meaning("folder")
