"""What a file says reaches the terminal spelt out, whoever wrote the file and whichever command prints it."""

from __future__ import annotations

import ast
import io
import os
import shutil
from pathlib import Path

import places
import pytest
from click.testing import CliRunner, Result
from gguf_files import TINY, changed, contents, store

from bitgen import cli, data
from bitgen.cli import console
from bitgen.cli.grid import Column, Grid

EVIL = "\x1b]0;title\x07\x1b[2J\x9b\u202e[red]\nlayers 7\r"
SPELT = r"\x1b]0;title\x07\x1b[2J\x9b\u202e[red]"


def bitgen(*args: str | Path) -> Result:
    return CliRunner().invoke(cli.main, list(map(str, args)))


def harmless(text: str) -> bool:
    return all(c.isprintable() or c == "\n" for c in text)


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """A model that runs, with such a name."""
    return changed(tmp_path / "m.gguf", lambda m, t: m.update({"general.name": EVIL}), shape=TINY)


def test_info_spells_control_characters(evil: Path) -> None:
    out = bitgen("info", evil).output
    assert harmless(out) and f"name                     {SPELT}\\nlayers 7\\r\n" in out


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("general.architecture", EVIL),
        ("bitnet-b1.58.hidden_activation", EVIL),
        ("bitnet-b1.58.block_count", EVIL),
        ("tokenizer.ggml.pre", EVIL),
        (EVIL, 3),
    ],
)
def test_errors_spell_control_characters(tmp_path: Path, key: str, value: object) -> None:
    metadata, tensors = contents(TINY)
    path = store(tmp_path / "m.gguf", metadata | {key: value}, tensors | {EVIL: ((4,), 0, bytes(16))})
    for args in (("info", path), ("gen", "--model", path)):
        out = bitgen(*args).output
        assert harmless(out) and r"\x1b]0;title\x07" in out


def test_the_line_about_a_run_does_too(evil: Path) -> None:
    found = bitgen("run", "-m", evil, "-p", "a", "-n", "1", "--temp", "0", "-t", "1")
    assert found.exit_code == 0 and SPELT in found.stderr
    assert all(c.isprintable() or c == "\n" for c in found.stderr)


def test_tables_show_what_looks_like_markup(capsys: pytest.CaptureFixture[str]) -> None:
    console.OUT.file = None  # the stream of this test
    console.OUT.print(Grid(EVIL, (Column("a"), Column("b", words=True)), [(":smile: [bold]x[/bold]", EVIL)]))
    out = capsys.readouterr().out
    assert SPELT in out and ":smile: [bold]x[/bold]" in out and harmless(out)


@pytest.mark.parametrize(
    ("text", "spelt"),
    [
        ("a\tb\nc", "a\tb\nc"),
        ("\x00\x08\x0b\r\x7f\x80\x9b", r"\x00\x08\x0b\r\x7f\x80\x9b"),
        ("é😀漢▁\u200d", "é😀漢▁\u200d"),
        ("\u202a\u202e\u2066\u2069\u200f\u061c\u2028", r"\u202a\u202e\u2066\u2069\u200f\u061c\u2028"),
        ("\udcff.gguf", r"\udcff.gguf"),
    ],
)
def test_what_is_spelt_out(text: str, spelt: str) -> None:
    assert console.printable(text) == spelt


class Terminal(io.StringIO):
    """A stdout that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "shown"), [(io.StringIO, "\x1b[2Jשלום\u200f\n"), (Terminal, "\\x1b[2Jשלום\u200f\n")]
)
def test_generated_text_is_exact_in_a_pipe(
    stream: type[io.StringIO], shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = stream()
    monkeypatch.setattr("sys.stdout", out)
    console.stream("\x1b[2Jשלום\u200f\n")
    assert out.getvalue() == shown


def test_commands_print_through_the_console_alone() -> None:
    for path in (places.REPO / "bitgen" / "cli").glob("*.py"):
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            assert path.name == "console.py" or name not in ("click.echo", "click.secho", "print"), (path, call.lineno)


# ---- files that commands read and write --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        ("info",), ("run", "-p", "a", "-m"), ("embed", "a", "-m"), ("chat", "-m"), ("verify", "-m"),
        ("perplexity", "-f", os.devnull, "-m"), ("tune", "--model"), ("build", "--model"),
        ("build", "--standalone", "-m"), ("convert", "-o", "o.gguf"), ("bench", "-m"), ("gen", "--model"),
        ("build", "--plan"), ("chat", "--chat-template"),
    ],
    ids=" ".join,
)  # fmt: skip
@pytest.mark.parametrize("name", ["pipe.gguf", "pipe"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(
    args: tuple[str, ...], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo(name)
    found = bitgen(*args, name)
    assert found.exit_code == 1 and f"{name}: is not a regular file" in found.output


@pytest.mark.parametrize(
    "args",
    [
        ("convert", "IN", "-o", "OUT"), ("verify", "-m", "IN", "-o", "OUT"), ("embed", "a", "-m", "IN", "--npy", "OUT"),
        ("tune", "--model", "IN", "-o", "OUT"), ("bench", "-m", "IN", "--plot", "OUT"),
        ("tune", "--model", "IN", "--cost-model", "llvm-mca", "--cpu", "znver3", "-o", "OUT"),
    ],
    ids=lambda args: " ".join(args[:1] + args[-2:-1]),
)  # fmt: skip
@pytest.mark.parametrize("kind", ["the same", "hard link", "symbolic link", "pipe"])
def test_no_output_takes_the_place_of_its_input(args: tuple[str, ...], kind: str, tmp_path: Path) -> None:
    source, out = tmp_path / "model.png", tmp_path / "out.png"
    shutil.copy(data.shipped_path(), source)
    before = source.read_bytes()
    if kind == "the same":
        out = source
    elif kind == "hard link":
        out.hardlink_to(source)
    elif kind == "symbolic link":
        out.symlink_to(source)
    else:
        os.mkfifo(out)
    found = bitgen(*({"IN": str(source), "OUT": str(out)}.get(arg, arg) for arg in args))
    assert found.exit_code == 1 and f"cannot write {out}: it is" in found.output
    assert source.read_bytes() == before
    assert set(tmp_path.iterdir()) == {source, out}


def test_a_program_does_not_take_the_place_of_its_model(tmp_path: Path) -> None:
    source = tmp_path / "model"
    shutil.copy(data.shipped_path(), source)
    found = bitgen("build", "--standalone", "-m", source, "-o", tmp_path)
    assert found.exit_code == 1 and "it is the input" in found.output and source.stat().st_size > 1 << 20
