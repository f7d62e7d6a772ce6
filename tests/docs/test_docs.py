"""The documentation: it builds without a warning, its scripts run and are typed, and its commands exist and work."""

from __future__ import annotations

import html
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import places
import pytest
from click.testing import CliRunner
from hub_server import Hub

from bitgen import cli, data
from bitgen.checkpoints import presets

DOCS = places.REPO / "docs"
PAGES = [places.REPO / "README.md", DOCS / "index.md", *sorted((DOCS / "guide").glob("*.md"))]
EXAMPLES = sorted((DOCS / "examples").glob("*.py"))


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="builds the site: pip install '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=places.REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    reference = (tmp_path / "api" / "index.html").read_text(encoding="utf-8")
    assert "agenerate" in reference and "generate_many" in reference
    page = (tmp_path / "guide" / "python" / "index.html").read_text(encoding="utf-8")
    shown = html.unescape(re.sub("<[^>]*>", "", page))
    for example in EXAMPLES:
        assert example.read_text(encoding="utf-8").strip().splitlines()[-1] in shown, example


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_scripts_run(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(example), run_name="__main__")
    shown = capsys.readouterr().out
    assert shown.strip() and "False" not in shown


# ---- commands -----------------------------------------------------------------------------------------------


def commands() -> Iterator[str]:
    """Every command of bitgen in an indented block of the pages, without its comment."""
    for page in PAGES:
        for line in page.read_text(encoding="utf-8").splitlines():
            found = re.match(r"    (bitgen [a-z].*)", line)
            if found:
                yield found[1].partition(" #")[0].strip()


COMMANDS = list(dict.fromkeys(commands()))


@pytest.mark.parametrize("line", COMMANDS)
def test_every_option_exists(line: str) -> None:
    command: click.Command = cli.main
    words, context = shlex.split(line)[1:], click.Context(cli.main)
    while isinstance(command, click.Group):
        name, command, words = command.resolve_command(context, words)  # type: ignore[assignment]
        assert command is not None
        context = click.Context(command, info_name=name, parent=context)
    command.make_parser(context).parse_args(list(words))


ELSEWHERE = {
    r"--remote": "needs a device: tests/tune/test_remote.py",
    r"hf:|pull|list|rm |cache|-m 2B4T|doctor": "needs the Hub, or shows this machine: below, tests/convert, tests/cli",
    r"^bitgen (bench|verify)|synth 2B4T|--os|neoverse|--reset": "takes long: tests/measure, tests/compile, tests/tune",
    r"build --arch arm64$": "takes long: tests/compile",
    r"^bitgen chat|convert (DIR|folder)": "tests/cli/test_chat.py, tests/convert",
    r"--model 2B4T$|--plan|gen SYMBOL": "tests/tune, tests/kernels",
}
"""Pattern of a command -> where it is tried instead."""
RUN = [line for line in COMMANDS if not any(re.search(pattern, line) for pattern in ELSEWHERE)]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the commands name."""
    folder = tmp_path_factory.mktemp("desk")
    shutil.copy(data.shipped_path(), folder / "model.gguf")
    (folder / "prompt.txt").write_text("Once upon a time")
    (folder / "text").write_text("Once upon a time there was a little girl named Lily. " * 60)
    (folder / "prompts.jsonl").write_text(
        '{"prompt": "Once", "max_tokens": 4}\n{"prompt": "One day", "max_tokens": 4}\n'
    )
    return folder


@pytest.mark.parametrize("line", RUN)
def test_the_commands_work(line: str, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    words = shlex.split(line)[1:]
    if words[0] == "run" and "-n" not in words and "--batch" not in words:
        words += ["-n", "4"]
    done = CliRunner().invoke(cli.main, words)
    assert done.exit_code == 0, done.output
    assert done.output.strip()


HUB = [line for line in COMMANDS if re.search(r"bitgen (pull|list|rm|cache|chat -m 2B4T)", line)]


def test_the_commands_that_need_the_hub_work(tmp_path: Path) -> None:
    """In the order of the pages, against a server of our own that has a tiny model under the preset's name."""
    hf_models = pytest.importorskip("hf_models", reason="the checkpoint is made with PyTorch")
    folder = hf_models.save(hf_models.BITNET, tmp_path / "there")
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[-1]['content'] }}")
    with Hub(str(presets.hub_id("2B4T")), folder).serve() as hub:
        environment = hub.environment(tmp_path / "home", BITGEN_CACHE=str(tmp_path / "cache"))
        for line in sorted(HUB, key=lambda line: "pull" not in line):
            words = shlex.split(line)[1:] + ["--yes"] * line.startswith("bitgen pull")
            command = [sys.executable, "-m", "bitgen", *words]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, input="abc\n")
            assert done.returncode == 0 and (done.stdout + done.stderr).strip(), (line, done.stderr)


def test_most_commands_are_tried() -> None:
    assert len(RUN) >= 12 and len(COMMANDS) >= 35
