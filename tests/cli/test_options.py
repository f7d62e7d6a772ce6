"""Options that make no sense: refused in one line that names them, before anything is opened or printed."""

from __future__ import annotations

import pytest
from click.testing import CliRunner, Result

from bitgen import api, cli
from bitgen.cli.main import COMMANDS

MANY = 1000
"""More threads than there are CPUs."""
RUN, CHAT, HUGE = ("run", "-p", "x"), ("chat",), "99999999999999999999"
NUMBERS = [
    *((RUN, "--temp", value) for value in ("nan", "inf", "-1", "x", "")),
    *((RUN, "--top-p", value) for value in ("nan", "0", "2", "-inf")),
    *((RUN, "--min-p", value) for value in ("nan", "2", "-1e-9")),
    *((RUN, "--repeat-penalty", value) for value in ("nan", "inf", "0", "-1")),
    *((RUN, "--top-k", value) for value in (HUGE, "-1", "1.5")),
    *((RUN, "--seed", value) for value in (HUGE, "-1", "1e3")),
    *((RUN, option, value) for option in ("-n", "--logprobs") for value in (HUGE, "-1", "nan")),
    *((RUN, "--prompt-lookup", value) for value in (HUGE, "nan")),
    *((CHAT, option, value) for option in ("-n", "--context") for value in (HUGE, "-1", "0", str(2**40))),
    *(((command, "-p", "x"), "-t", value) for command in ("run",) for value in ("0", "-1", "100000", HUGE, "1,2")),
    *((("bench",), "-t", value) for value in ("0", "1,0", "100000", HUGE, "1,,2", "1,1", "x", "")),
    *((("bench",), option, value) for option in ("--prompt", "--context") for value in ("-1", HUGE, "8,8", "nan")),
    *((("bench",), option, value) for option in ("--gen", "--batch") for value in ("-1", HUGE, "x")),
    (("bench",), "--batch", "100000000"),
    *((("perplexity", "-f", __file__), option, value) for option in ("--ctx", "--stride") for value in ("-1", HUGE)),
    *((("synth", "stories", "-o", "x"), "--seed", value) for value in ("-1", HUGE)),
    *((("tune", "--model", "stories"), "--bytes-per-cycle", value) for value in ("nan", "inf", "0", "-1")),
]


@pytest.fixture(autouse=True)
def nothing_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a command would call is not reached."""

    def reached(*_: object, **__: object) -> None:
        raise AssertionError("the command ran")

    for name in ("load", "generate", "chat", "embed", "perplexity", "bench", "verify", "tune", "estimate", "build",
                 "standalone", "synth", "open_source", "convert", "info", "kernels", "gen", "kernel_cost",
                 "doctor"):  # fmt: skip
        monkeypatch.setattr(api, name, reached)


def assert_refused(result: Result, *names: str) -> None:
    assert result.exit_code in (1, 2) and isinstance(result.exception, SystemExit), result.exception
    assert result.output.startswith("bitgen: ") and result.output.count("\n") == 1, result.output
    assert any(name in result.output for name in names), result.output


@pytest.mark.parametrize(("command", "option", "value"), NUMBERS, ids=lambda v: "_" if isinstance(v, tuple) else v)
def test_numbers_out_of_range(command: tuple[str, ...], option: str, value: str) -> None:
    assert_refused(CliRunner().invoke(cli.main, [*command, option, value]), f"'{option}'", f"{option}: ")


NEEDED = {
    "run": ("-p", "x"), "perplexity": ("-f", __file__), "tune": ("--model", "x"), "synth": ("x", "-o", "x"),
    "convert": ("x", "-o", "x"), "gen": ("x",), "info": ("x",), "tokenize": ("x",),
}  # fmt: skip
"""What a command cannot do without."""
TEXTS = {"prompt", "system", "texts"}
"""Parameters that may be empty."""


def options(multiple: bool = False) -> list[tuple[str, str]]:
    """Every command and option that takes a value; all but the repeatable ones, or those that are no free text."""
    return [
        (str(command.name), param.opts[-1])
        for command in COMMANDS
        for param in command.params
        if param.param_type_name == "option" and not param.is_flag  # type: ignore[attr-defined]
        and (param.name not in TEXTS if multiple else not param.multiple)
    ]  # fmt: skip


def without(needed: tuple[str, ...], command: str, option: str) -> list[str]:
    """What a command needs, but not this option."""
    names = next(p.opts for c in COMMANDS if c.name == command for p in c.params if option in p.opts)
    return [*needed[:-2]] if len(needed) > 1 and needed[-2] in names else list(needed)


@pytest.mark.parametrize(("command", "option"), options(multiple=True))
def test_nothing_but_a_text_is_empty(command: str, option: str) -> None:
    needed = without(NEEDED.get(command, ()), command, option)
    for words in ([option, ""], [f"{option}="]):
        result = CliRunner().invoke(cli.main, [command, *needed, *words])
        assert_refused(result, f"'{option}'")
        assert result.exit_code == 2 and "it is empty" in result.output


@pytest.mark.parametrize(("command", "option"), options())
def test_an_option_is_given_once(command: str, option: str) -> None:
    needed = without(NEEDED.get(command, ()), command, option)
    result = CliRunner().invoke(cli.main, [command, *needed, option, "1", option, "2"])
    assert_refused(result, f"'{option}'")
    assert result.exit_code == 2 and "more than once" in result.output


@pytest.mark.parametrize("args", [["info", ""], ["synth", "", "-o", "x"], ["convert", "", "-o", "x"], ["gen", ""]])
def test_arguments_are_not_empty(args: list[str]) -> None:
    result = CliRunner().invoke(cli.main, args)
    assert_refused(result, "FILE", "PRESET", "SOURCE", "SYMBOL")
    assert "it is empty" in result.output


MCA, BENCH = ["--cost-model", "llvm-mca", "--cpu", "znver3"], ["bench"]
TUNE = ["tune", "-m", "x"]
CONTRADICTIONS = [
    ([*TUNE, "--remote", "x", *MCA], "--remote measures and --cost-model estimates"),
    ([*TUNE, "--ssh", "x"], "--ssh"),
    ([*TUNE, "--ssh", "x", *MCA], "--ssh"),
    ([*TUNE, "--cost-model", "llvm-mca"], "--cost-model needs --cpu"),
    ([*TUNE, "--cpu", "znver3"], "--cpu goes with --cost-model"),
    ([*TUNE, "--cpu", "znver3", "--remote", "x"], "--cpu goes with --cost-model"),
    ([*TUNE, "--bytes-per-cycle", "4"], "--bytes-per-cycle"),
    ([*TUNE, "--bytes-per-cycle", "4", "--remote", "x"], "--bytes-per-cycle"),
    ([*TUNE, "--arch", "arm64"], "--arch goes with --remote or --cost-model"),
    ([*TUNE, "--threads", "1", *MCA], "--threads is for measuring"),
    ([*TUNE, "--reset", *MCA], "--reset is for measuring"),
    ([*TUNE, "--arch", "arm64", "--isa", "avx2", *MCA], "--isa avx2 is not of --arch arm64"),
    (["build", "--one-file"], "--one-file: only with --standalone"),
    (["build", "--head", "f16", "--activation", "silu"], "--activation"),
    (["build", "--tl-tiles", "1x1=1/1/1"], "--tl-tiles: only with --standalone"),
    (["gen"], "give a kernel's symbol"),
    (["gen", "x", "-m", "x"], "not both"),
    (["gen", "-m", "x", "--asm"], "about one kernel"),
    (["gen", "-m", "x", "--mca", "znver3"], "about one kernel"),
    (["gen", "x", "--isa", "avx2"], "a symbol names its level"),
    (["gen", "x", "--asm", "--mca", "znver3"], "give one of them"),
    (["gen", "x", "--json"], "--json goes with"),
    (["gen", "x", "--asm", "--json"], "--json goes with"),
    ([*BENCH, "--batch", "0"], "--batch"),
    ([*BENCH, "--prompt", "0", "--gen", "0"], "nothing to measure"),
    ([*BENCH, "--gen", "0", "--batch", "4"], "--batch is about decoding"),
    ([*BENCH, "--vs", "llama.cpp", "--context", "64"], "--vs compares"),
    ([*BENCH, "--vs", "llama.cpp", "--prompt", "0", "--batch", "4"], "--vs compares"),
    (["convert", "hf:a/b", "-o", "x", "--activation", "silu"], "--activation: what a GGUF file does not say"),
    (["embed", "a", "--npy", "x.npy", "--json"], "two forms of one result"),
]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["run"], "give one of --prompt, --file and --batch"),
        (["run", "-p", "x", "--nonsense"], "--nonsense"),
        (["run", "-p", "x", "more"], "(more)"),
        (["nonsense"], "nonsense"),
        (["tune", "--model", "x", "--quick", "--thorough"], "--quick"),
        (["perplexity", "-f", "/nowhere/text"], "/nowhere/text"),
        (["embed", "a", "-f", __file__], "--file"),
        *CONTRADICTIONS,
    ],
)
def test_usage_is_one_line_that_names_the_help(args: list[str], words: str) -> None:
    result = CliRunner().invoke(cli.main, args)
    assert_refused(result, words)
    assert result.exit_code == 2 and result.output.endswith("--help)\n")


@pytest.mark.parametrize(
    "args",
    [
        [*TUNE, "--remote", "x", "--ssh", "y", "--arch", "arm64", "--isa", "neon", "--reset", "--threads", "2"],
        [*TUNE, *MCA, "--arch", "x86_64", "--isa", "scalar", "--bytes-per-cycle", "4"],
        ["build", "--standalone", "--one-file", "--head", "f16", "--activation", "silu"],
        ["gen", "-m", "x", "--isa", "avx2", "--json"],
        [*BENCH, "--prompt", "0", "--batch", "4", "--context", "64"],
        [*BENCH, "--vs", "llama.cpp", "--context", "0,64", "--gen", "0"],
        ["convert", "x.gguf", "-o", "y", "--activation", "silu"],
    ],
    ids=" ".join,
)
def test_what_fits_together_is_taken(args: list[str]) -> None:
    result = CliRunner().invoke(cli.main, args)
    assert isinstance(result.exception, AssertionError), result.output


CROWDED = f"{MANY} threads on"


@pytest.mark.parametrize(
    "args",
    [
        [*RUN, "-t", str(MANY)], ["chat", "-t", str(MANY)], ["embed", "a", "-t", str(MANY)],
        ["perplexity", "-f", __file__, "-t", str(MANY)], [*BENCH, "-t", f"1,{MANY}"], [*TUNE, "-t", str(MANY)],
    ],
    ids=" ".join,
)  # fmt: skip
def test_more_threads_than_cpus_are_warned_of(args: list[str]) -> None:
    assert f"bitgen: warning: {CROWDED}" in CliRunner().invoke(cli.main, args).stderr
    fewer = [arg.replace(str(MANY), "1") if arg != f"1,{MANY}" else "1" for arg in args]
    assert "warning" not in CliRunner().invoke(cli.main, fewer).stderr


def test_a_device_has_cpus_of_its_own() -> None:
    assert "warning" not in CliRunner().invoke(cli.main, [*TUNE, "-t", str(MANY), "--remote", "x"]).stderr


def test_no_command_shows_the_help() -> None:
    result = CliRunner().invoke(cli.main, [])
    assert result.output.startswith("Usage: ") and "perplexity" in result.output


def test_texts_may_be_empty_and_plans_many() -> None:
    for args in (
        ["run", "-p", ""],
        ["chat", "--chat-template", "chatml", "--system", ""],
        ["embed", ""],
        ["build", "--plan", "a", "--plan", "b"],
    ):
        assert isinstance(CliRunner().invoke(cli.main, args).exception, AssertionError)
