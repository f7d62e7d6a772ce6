"""Models by name on the command line: asked for at a terminal, never fetched silently, and run."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the checkpoints are made with PyTorch")
pytest.importorskip("pexpect", reason="terminals of POSIX")

import hf_models  # noqa: E402
from hf_models import BITNET  # noqa: E402
from hub_server import Hub  # noqa: E402
from screens import Terminal  # noqa: E402

from bitgen.convert import convert  # noqa: E402

BITGEN = [sys.executable, "-m", "bitgen"]
RUN = ("-p", "abc", "-n", "4", "--temp", "0")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A repository in the official layout: packed safetensors. Its name is new, so that no cache has it."""
    with Hub(f"owner/tiny-{secrets.token_hex(4)}", hf_models.save(BITNET, tmp_path / "there")).serve() as hub:
        yield hub


@pytest.fixture
def as_gguf(hub: Hub, tmp_path: Path) -> Hub:
    """The same model as a GGUF file."""
    (tmp_path / "gguf").mkdir()
    convert(hub.folder, tmp_path / "gguf" / "m-I2_S.gguf")
    hub.folder = tmp_path / "gguf"
    return hub


def environment(hub: Hub, tmp_path: Path, **more: str) -> dict[str, str]:
    return hub.environment(tmp_path / "home", **more)


def bitgen(hub: Hub, tmp_path: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    out = subprocess.run(
        [*BITGEN, *words], env=environment(hub, tmp_path, **more), capture_output=True, text=True, timeout=300,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert "Traceback" not in out.stderr, out.stderr
    return out


def at_terminal(hub: Hub, tmp_path: Path, answer: str | None, *words: str) -> tuple[int, str]:
    """Exit code and screen of a command at a terminal, whose user answers a question; None: there is none."""
    with Terminal([*BITGEN, *words], columns=120, env=environment(hub, tmp_path)) as terminal:
        if answer is not None:
            terminal.wait("[Y/n]")
            terminal.send(answer)
        return terminal.end(), terminal.text


def test_from_nothing_to_an_answer_and_then_offline(as_gguf: Hub, tmp_path: Path) -> None:
    first = bitgen(as_gguf, tmp_path, "run", "-m", as_gguf.name, "--yes", *RUN)
    assert first.returncode == 0 and first.stdout.startswith("abc"), first.stderr
    assert f"{as_gguf.name}: m-I2_S.gguf" in first.stderr and " to download" in first.stderr
    asked = len(as_gguf.asked)
    again = bitgen(as_gguf, tmp_path, "run", "-m", as_gguf.name, *RUN, HF_HUB_OFFLINE="1")
    assert again.returncode == 0 and again.stdout == first.stdout and "download" not in again.stderr
    assert len(as_gguf.asked) == asked


def test_from_a_checkpoint_to_an_answer_asked_at_a_terminal(hub: Hub, tmp_path: Path) -> None:
    code, screen = at_terminal(hub, tmp_path, "n\r", "run", "-m", hub.name, *RUN)
    assert code == 1 and "a checkpoint, to be converted" in screen and "kB, download? [Y/n]" in screen, screen
    assert f"{hub.name} was not downloaded" in screen
    assert not [path for method, path, _ in hub.asked if "/resolve/" in path]
    code, screen = at_terminal(hub, tmp_path, "\x03", "run", "-m", hub.name, *RUN)
    assert code == 130, screen
    code, screen = at_terminal(hub, tmp_path, "\r", "run", "-m", hub.name, *RUN)
    assert code == 0 and "abc" in screen, screen
    code, screen = at_terminal(hub, tmp_path, None, "run", "-m", hub.name, *RUN)
    assert code == 0 and "download" not in screen


@pytest.mark.parametrize(
    "words",
    [
        ("run", "-p", "x"), ("embed", "x"), ("chat",), ("perplexity", "-f", __file__), ("bench",), ("verify",),
        ("build", "--standalone"),
    ],
)  # fmt: skip
def test_nothing_is_fetched_silently(hub: Hub, tmp_path: Path, words: tuple[str, ...]) -> None:
    out = bitgen(hub, tmp_path, *words, "-m", hub.name)
    want = f"bitgen: {hub.name} is not on this machine yet: `bitgen pull {hub.name}` downloads it\n"
    assert (out.returncode, out.stderr, out.stdout) == (1, want, "") and not hub.asked


@pytest.mark.parametrize("words", [("info",), ("tune", "--model"), ("gen", "--model")])
def test_commands_that_only_look_do_not_fetch(hub: Hub, tmp_path: Path, words: tuple[str, ...]) -> None:
    out = bitgen(hub, tmp_path, *words, hub.name)
    assert out.returncode == 1 and f"`bitgen pull {hub.name}` downloads it" in out.stderr and not hub.asked


def test_pull_list_info_rm(as_gguf: Hub, tmp_path: Path) -> None:
    pulled = bitgen(as_gguf, tmp_path, "pull", f"https://huggingface.co/{as_gguf.repo}")
    path = Path(pulled.stdout.strip())
    assert pulled.returncode == 0 and path.is_file() and path.is_relative_to(tmp_path / "home"), pulled.stderr
    assert "all of it is here" in bitgen(as_gguf, tmp_path, "pull", as_gguf.name).stderr
    listed = bitgen(as_gguf, tmp_path, "list").stdout
    assert f"{as_gguf.name}\n    downloaded, I2_S" in listed and "2B4T" in listed and "packed" in listed
    assert "chats" in listed.split(as_gguf.name)[1].splitlines()[1]
    assert bitgen(as_gguf, tmp_path, "info", as_gguf.name).returncode == 0
    dry = bitgen(as_gguf, tmp_path, "rm", as_gguf.name, "--dry-run")
    assert "would become free" in dry.stdout and path.exists()
    unsaid = bitgen(as_gguf, tmp_path, "rm", as_gguf.name)
    assert (
        unsaid.returncode == 1 and f"needs a yes: `bitgen rm {as_gguf.name} --yes`" in unsaid.stderr and path.exists()
    )
    code, screen = at_terminal(as_gguf, tmp_path, "n\r", "rm", as_gguf.name)
    assert code == 1 and "stays" in screen and path.exists()
    assert " freed\n" in bitgen(as_gguf, tmp_path, "rm", as_gguf.name, "--yes").stdout and not path.exists()


def test_prune_says_what_it_frees(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "build" / "x-linux-0.failed"
    folder.mkdir(parents=True)
    for each in (tmp_path / "cache", folder.parent, folder):
        each.chmod(0o700)
    os.utime(folder, (1e9, 1e9))
    cache = str(tmp_path / "cache")
    dry = bitgen(hub, tmp_path, "cache", "prune", "--dry-run", BITGEN_CACHE=cache)
    assert "build/x-linux-0.failed: a build that failed" in dry.stderr and "would become free" in dry.stdout
    assert folder.exists()
    assert bitgen(hub, tmp_path, "cache", "prune", BITGEN_CACHE=cache).returncode == 0 and not folder.exists()


def test_chat_without_a_model_says_which_can_chat(as_gguf: Hub, tmp_path: Path) -> None:
    cache = {"BITGEN_CACHE": str(tmp_path / "cache")}  # where nothing is
    out = bitgen(as_gguf, tmp_path, "chat", **cache)
    assert out.returncode == 1 and "none is here yet" in out.stderr and "`bitgen chat -m 2B4T`" in out.stderr
    bitgen(as_gguf, tmp_path, "pull", as_gguf.name, **cache)
    assert f"here are {as_gguf.name}" in bitgen(as_gguf, tmp_path, "chat", **cache).stderr


def test_in_python(hub: Hub, tmp_path: Path) -> None:
    script = (
        "from bitgen import BitgenError, Model\n"
        f"try: Model.load('{hub.name}')\n"
        "except BitgenError as error: print(error)\n"
        f"print(''.join(Model.load('{hub.name}', download=True).generate('abc', 4, temperature=0)))\n"
        f"Model.load('{hub.name}')\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", script], env=environment(hub, tmp_path), capture_output=True, text=True, timeout=300
    )
    assert out.returncode == 0 and f"bitgen pull {hub.name}" in out.stdout and "Traceback" not in out.stderr, out
