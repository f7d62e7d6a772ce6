"""Completion as the shells do it: each is started on a terminal, given the script, and Tab is pressed."""

from __future__ import annotations

import os
import re
import select
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from bitgen import api, cli, targets
from bitgen.checkpoints import presets
from bitgen.cli.completion import SHELLS
from bitgen.errors import BitgenError
from bitgen.spec import KernelSpec

WAIT_S = 60
COMMAND = f"""#!{sys.executable}
import sys
sys.argv[0] = "bitgen"
from bitgen.cli import main
main()
"""
"""What an installation puts on the PATH."""

START = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], 'eval "$(bitgen completion bash)"'),
    "zsh": (["zsh", "-f", "-i"], 'autoload -U compinit; compinit -u; eval "$(bitgen completion zsh)"'),
    "fish": (["fish", "--no-config", "-i"], "bitgen completion fish | source"),
}


def complete(monkeypatch: pytest.MonkeyPatch, *words: str) -> list[str]:
    """What is offered for the last word, as bash asks."""
    monkeypatch.setenv("COMP_LINE", shlex.join(["bitgen", *words[:-1]]) + f" {words[-1]}")
    result = CliRunner().invoke(
        cli.main, [], env={"_BITGEN_COMPLETE": "bash_complete"}, prog_name="bitgen", standalone_mode=True
    )
    return result.output.splitlines()


@pytest.fixture(autouse=True)
def no_models_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever other tests have downloaded."""
    monkeypatch.setattr(api, "model_names", list)


PRESETS = [f"plain,{name}" for name in presets.names()]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("tune", "--model", ""), PRESETS),
        (("doctor", "-m", "2b"), ["plain,2B4T"]),
        (("build", "-m", "fal"), [name for name in PRESETS if "Falcon" in name]),
        (("synth", "stor"), ["plain,stories"]),
        (("synth", "la"), []),
        (("tune", "--model", "ladder-13"), ["plain,ladder-13B"]),
        (("bench", "--ladder", "--sizes", "1.3"), ["plain,1.3B"]),
        (("chat", "--chat-template", "llama3"), ["plain,llama3"]),
        (("run", "-p", "x", "--isa", ""), [f"plain,{isa}" for isa in targets.TARGETS]),
        (("build", "--isa", "avx512v"), ["plain,avx512vbmi", "plain,avx512vnni"]),
        (("run", "--cache", "i"), ["plain,int8"]),
        (("completion", ""), [f"plain,{shell}" for shell in SHELLS]),
        (("com",), ["plain,completion"]),
    ],
    ids=" ".join,
)
def test_values(monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], offered: list[str]) -> None:
    assert [line for line in complete(monkeypatch, *words) if line.startswith("plain,")] == offered


def test_files_of_models_or_any(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf", "two words.gguf", "$(id).gguf", "*.gguf", "\x1b[2J.gguf", "a.txt"):
        (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)
    offered = complete(monkeypatch, "run", "-m", "")
    assert [line for line in offered if "gguf" in line] == ["plain,a.gguf", "plain,b.gguf"] and offered[0] == "file,"
    assert complete(monkeypatch, "info", "a") == ["file,a", "plain,a.gguf"]
    assert complete(monkeypatch, "info", f"{tmp_path}/b") == [f"file,{tmp_path}/b", f"plain,{tmp_path}/b.gguf"]
    assert complete(monkeypatch, "perplexity", "-f", "a") == ["file,a"]
    for nowhere in ("no/such/", "~nobody-of-this-name/"):
        assert complete(monkeypatch, "run", "-m", nowhere) == [f"file,{nowhere}"]


def test_models_that_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """bash is given what follows the last colon, where it ends a word; what would be expanded is left out."""
    here = ["stories", "hf:owner/name", "hf:owner/more:TQ2_0.gguf", "hf:owner/evil:$(id).gguf", "hf:a b/c"]
    monkeypatch.setattr(api, "model_names", lambda: here)
    monkeypatch.setenv("COMP_WORDBREAKS", " =:")
    assert complete(monkeypatch, "rm", "hf:ow") == ["file,hf:ow", "plain,owner/name", "plain,owner/more:TQ2_0.gguf"]
    assert complete(monkeypatch, "rm", "hf:owner/more:t") == ["file,hf:owner/more:t", "plain,TQ2_0.gguf"]
    monkeypatch.setenv("COMP_WORDBREAKS", " =")
    assert complete(monkeypatch, "chat", "-m", "hf:owner/n")[1:] == ["plain,hf:owner/name"]


def test_a_cache_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise BitgenError("no")

    monkeypatch.setattr(api, "model_names", broken)
    assert complete(monkeypatch, "rm", "2B") == ["file,2B", "plain,2B4T"]


def test_kernels_that_can_be_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    offered = complete(monkeypatch, "gen", "bg_i2_s_gemv_m2560_k2560_")
    specs = [KernelSpec.parse(line.removeprefix("plain,")) for line in offered]
    assert len(specs) > 1 and all(specs)
    assert CliRunner().invoke(cli.main, ["gen", offered[0].removeprefix("plain,")]).exit_code == 0


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the command bitgen."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "bitgen").write_text(COMMAND)
    (folder / "bitgen").chmod(0o755)
    return folder


@pytest.mark.skipif(os.name == "nt", reason="shells of POSIX")
@pytest.mark.parametrize("shell", SHELLS)
def test_in_a_shell(shell: str, command: Path, tmp_path: Path) -> None:
    """On a pseudo terminal: a value of an option that only bitgen knows, and the name of a command."""
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    snapshot = tmp_path / "huggingface" / "hub" / "models--owner--tiny" / "snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "tiny.gguf").write_bytes(b"GGUF")
    with Terminal(START[shell][0], command, tmp_path) as terminal:
        terminal.type(f"{START[shell][1]}; echo rea''dy\r", "ready")
        terminal.type("bitgen tune --model BitNet-embedding-2\t", r"BitNet-embedding-270M")
        terminal.type("--isa avx512vb\t", r"--isa avx512vbmi")
        terminal.type("\x15bitgen perp\t", r"bitgen perplexity")  # ^U: another line
        terminal.type("\x15bitgen rm hf:ow\t", r"hf:owner/tiny@?")


OLD_BASH = """
complete() {
  case " $* " in *nosort*) echo "complete: nosort: invalid option name" >&2; return 2;; esac
  builtin complete "$@"
}
compopt() { echo "compopt: command not found" >&2; return 127; }
eval "$(bitgen completion bash)"
complete -p bitgen
COMP_LINE="bitgen synth stor"; COMP_POINT=17; _bitgen_completion bitgen; echo "${COMPREPLY[@]}"
COMP_LINE="bitgen info x"; COMP_POINT=13; _bitgen_completion bitgen
"""


@pytest.mark.skipif(not shutil.which("bash"), reason="bash is not installed")
def test_the_bash_of_macos(command: Path) -> None:
    """Which is 3.2 and lacks two things: it completes without a complaint."""
    path = f"{command}{os.pathsep}{os.environ['PATH']}"
    out = subprocess.run(
        ["bash", "-c", OLD_BASH], env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=WAIT_S
    )
    assert out.stderr == "" and out.stdout == "complete -o default -F _bitgen_completion bitgen\nstories\n"


class Terminal:
    """A shell on a pseudo terminal of 200 columns."""

    def __init__(self, arguments: list[str], command: Path, home: Path) -> None:
        import fcntl
        import termios

        self._here, there = os.openpty()
        kept = {name: value for name, value in os.environ.items() if name.startswith(("PYTHON", "BITGEN", "LANG"))}
        environment = {
            **kept, "PATH": f"{command}{os.pathsep}{os.environ['PATH']}", "HOME": str(home), "TERM": "xterm",
            "PS1": "$ ", "COLUMNS": "200", "LINES": "50", "XDG_CONFIG_HOME": str(home), "XDG_DATA_HOME": str(home),
            "HF_HOME": str(home / "huggingface"),
        }  # fmt: skip
        self._process = subprocess.Popen(
            arguments, stdin=there, stdout=there, stderr=there, env=environment, cwd=home, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # fish demands a terminal of its own
        )  # fmt: skip
        os.close(there)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._here)

    def type(self, text: str, expected: str) -> None:
        """Press keys, and wait until the screen has shown an answer."""
        os.write(self._here, text.encode())
        shown, end = "", time.monotonic() + WAIT_S
        while not re.search(expected, shown):
            assert time.monotonic() < end, repr(shown)
            if select.select([self._here], [], [], 0.2)[0]:
                shown += re.sub(r"\x1b(\[[0-?]*[ -/]*[@-~]|\].*?(\x07|\x1b\\)|[()]B|[=>])|[\r\x07]", "", self._read())

    def _read(self) -> str:
        return os.read(self._here, 1 << 16).decode(errors="replace")
