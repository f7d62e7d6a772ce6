"""Programs without Python: their text is that of the Python path, here and under qemu; damage is refused in words."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import time
from pathlib import Path
from typing import Any

import click.testing
import pytest
import runtime_lab

import bitgen
from bitgen import api, cli, targets
from bitgen.checkpoints import presets
from bitgen.compile import library, standalone
from bitgen.compile.clang import BuildOptions, find_compiler
from bitgen.errors import BitgenError, UnsupportedError
from bitgen.kernels import plan


def levels(arch: str) -> list[targets.Target]:
    """The ISA levels of an architecture on the default system."""
    return targets.levels(targets.platform_of(arch))


QEMU = {"arm64": ("qemu-aarch64-static", "cortex-a53")}


@pytest.fixture(scope="module")
def model() -> bitgen.Model:
    return bitgen.Model.load()


FOREIGN = [pytest.param(arch, marks=pytest.mark.qemu) for arch in QEMU if arch != targets.host_arch()]


@pytest.fixture(scope="module", params=[targets.host_arch(), *FOREIGN])
def arch(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def story(arch: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """The command that runs the shipped model's program, and the program's file."""
    command = []
    if arch != targets.host_arch():
        emulator, cpu = QEMU[arch]
        if shutil.which(emulator) is None:
            pytest.skip(f"{emulator} is not installed (Debian: qemu-user-static)")
        command = [emulator, "-cpu", cpu]
    made = api.standalone(arch=arch, folder=tmp_path_factory.mktemp(arch))
    assert [file.name for file in made.files] == ["stories", "stories.bgpk"]
    assert [target.isa for target in levels(arch) if target.isa not in made.left_out] == list(made.levels)
    return [*command, str(made.files[0])], made.files[0]


def run(command: list[str], *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*command, *arguments], input=stdin, capture_output=True, timeout=300)


def text_of(command: list[str], *arguments: str, stdin: bytes = b"") -> str:
    done = run(command, *arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


SAMPLINGS: list[tuple[str, dict[str, Any]]] = [
    ("--temp 0 --repeat-penalty 1", {"temperature": 0, "repeat_penalty": 1}),
    ("--seed 3", {"seed": 3}),
    (
        "--seed=18446744073709551615 --temp=1.3 --top-k=0 --top-p=0.95 --min-p=0.01 --repeat-penalty=1.2 -t 3",
        {"temperature": 1.3, "top_k": 0, "top_p": 0.95, "min_p": 0.01, "repeat_penalty": 1.2, "seed": 2**64 - 1},
    ),
    (
        "--cache int8 --ignore-eos --seed 5 --top-p 1 --repeat-penalty 1 --temp 2",
        {"temperature": 2.0, "top_p": 1, "repeat_penalty": 1, "seed": 5, "cache": "int8", "stop": False},
    ),
]


@pytest.mark.parametrize(("options", "how"), SAMPLINGS)
def test_the_text_is_that_of_python(
    story: tuple[list[str], Path], arch: str, model: bitgen.Model, options: str, how: dict[str, Any]
) -> None:
    n = 40 if arch == targets.host_arch() else 10
    for prompt in ("Once upon a time", "", "naïve 👩‍👧 <|eot|>\n"):
        expected = "".join(model.generate(prompt, n, **how))
        assert text_of(story[0], "-p", prompt, "-n", str(n), *options.split()) == f"{prompt}{expected}\n"


def test_the_end_of_a_story_and_of_the_context(story: tuple[list[str], Path], arch: str, model: bitgen.Model) -> None:
    end, long = "They lived happily ever after. The end.", "One day " * 245
    cases = [(end, 0, True), (end, 1, True), (end, 30, True), (long, 600, False)]
    for prompt, limit, stop in cases[: None if arch == targets.host_arch() else 2]:
        generation = model.generate(prompt, limit, temperature=0, repeat_penalty=1, stop=stop)
        options = ["--temp", "0", "--repeat-penalty", "1", "-n", str(limit), *([] if stop else ["--ignore-eos"])]
        assert text_of(story[0], "-p", prompt, *options) == prompt + "".join(generation) + "\n"
        assert (generation.timing.stopped == "stop token") == (stop and limit > 0)
    n = len(model.tokenizer.encode(end))
    done = run(story[0], "-p", end, "--temp", "0", "--context", str(n + 3), "--ignore-eos")
    assert b"decode 4 tokens" in done.stderr  # the last need not fit


def test_the_prompt_from_standard_input(story: tuple[list[str], Path]) -> None:
    text = text_of(story[0], "-p", "-", "--seed", "1", "-n", "8", stdin=b"One day\r\nTom\rand \0")
    assert text.startswith("One day\nTom\nand \0") and len(text) > 20
    assert text == text_of(story[0], "-p", "-", "--seed", "1", "-n", "8", stdin=b"One day\nTom\nand \0")


def test_timing_goes_to_stderr(story: tuple[list[str], Path]) -> None:
    line = run(story[0], "-p", "Once", "-n", "4", "--seed", "9", "-t", "2").stderr.decode()
    parts = [part.split()[0] for part in line.split(" | ")]
    assert parts == ["load", "prefill", "decode", "stopped:", "stories"] and line.endswith(
        "certified head, 2 threads, seed 9\n"
    )
    first, second = (text_of(story[0], "-p", "Once", "--temp", "5", "--top-k", "0", "-n", "12") for _ in range(2))
    assert first != second  # seeds differ


def test_why_a_text_ended_is_said_as_python_says_it(story: tuple[list[str], Path]) -> None:
    for options in (["-n", "3"], ["-n", "0"], ["--context", "9"], ["-n", "400"]):
        arguments = ["-p", "Once", "--temp", "0", *options]
        said = run(story[0], *arguments).stderr.decode().split(" | ")
        expected = click.testing.CliRunner().invoke(cli.main, ["run", *arguments]).stderr.split(" | ")
        assert said[3] == expected[3] and said[3].startswith("stopped: ")


def test_every_option_of_run_is_there_or_refused_by_name(story: tuple[list[str], Path]) -> None:
    has = text_of(story[0], "--help")
    for param in cli.main.commands["run"].params:  # type: ignore[attr-defined]
        if f" {param.opts[-1]} " not in has:
            for name in param.opts:
                done = run(story[0], "-p", "a", name, "1")
                assert done.returncode == 2 and done.stderr.startswith(f"stories: {param.opts[-1]}: ".encode()), name
                assert b"`bitgen run` has" in done.stderr or b"`bitgen build --standalone` has it" in done.stderr


WRONG = [
    (["-p", "a", "--temp", "-1"], 2, "--temp: must be a number from 0\n"),
    (["-p", "a", "--temp", "nan"], 2, "--temp: must be a number"),
    (["-p", "a", "--top-p", "0"], 2, "--top-p: must be a number above 0 to 1"),
    (["-p", "a", "-n", "1.5"], 2, "--max-tokens: must be a whole number from 0"),
    (["-p", "a", "-n", "2147483648"], 2, "--max-tokens: must be a whole number from 0 to 2147483647\n"),
    *(
        (["-p", "a", "-n", n], 2, "--max-tokens: must be a whole")
        for n in ("", " 1", "1 ", "0x10", "1e3", "-1", "+1", "1x")
    ),
    *((["-p", "a", "--temp", t], 2, "--temp: must be a number") for t in ("", " 1", "0x1p3", "inf", "1e999", "1,5")),
    *((["-p", "a", "--seed", n], 2, "--seed: must be a whole") for n in ("", " 1", "1.0", "0x1")),
    (["-p", "a", "-t", "0"], 2, "--threads: must be a whole number from 1 to 1024"),
    (["-p", "a", "--seed", "-3"], 2, "--seed: must be a whole number"),
    (["-p", "a", "--seed", "18446744073709551616"], 2, "--seed: must be a whole number"),
    (["-p", "a", "--cache", "f64"], 2, "--cache: must be f16 or int8"),
    (["-p"], 2, "--prompt: its value is missing"),
    (["-p", "a", "--info=1"], 2, "--info: takes no value"),
    (["-p", "a", "--prompt", "b"], 2, "--prompt: is given more than once"),
    (["-p", "a", "--repeat-penalty", "1e31"], 2, "--repeat-penalty: must be a number from 1e-30 to 1e+30"),
    (["-p", "a", "--context", "513"], 1, "--context: must be a whole number from 1 to 512, for which the model"),
    (["-p", "a", ""], 2, ": no such option"),
    (["--frob"], 2, "--frob: no such option; --help lists them"),
    (["-p", "a", "--isa", "sse9"], 1, "sse9: no such ISA level"),
    (["-p", "a", "-m", "/nowhere"], 1, "/nowhere: the file cannot be opened"),
    (["-p", "a b " * 400], 1, "the context holds 512"),
    (["-p", "a", "--context", "1"], 1, "the context holds 1"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), WRONG)
def test_errors(story: tuple[list[str], Path], arguments: list[str], code: int, message: str) -> None:
    done = run(story[0], *arguments)
    assert done.returncode == code and done.stdout == b""
    assert done.stderr.decode().startswith("stories: ") and message in done.stderr.decode()


def test_help_and_info(story: tuple[list[str], Path]) -> None:
    words = text_of(story[0], "--help")
    assert words.startswith("usage: stories -p TEXT") and all(name in words for name in ("--min-p", "--ignore-eos"))
    assert run(story[0]).returncode == 2
    info = text_of(story[0], "--info")
    assert "byte-level BPE, 4096 tokens" in info and "taken" in info and "head: certified" in info
    assert run(story[0], "-p", "-", stdin=b"\xff").stderr == b"stories: the prompt is not valid UTF-8\n"


@pytest.fixture(scope="module")
def careful(model: bitgen.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model's program for this CPU alone, with its weights, under the sanitizers."""
    lookups, _ = standalone.shared_layout(model.shape, targets.platform_of())
    level = next(x for x in lookups if x.isa in library.host_isas())
    folder = library.for_model(model.shape, [level], BuildOptions(program="run.c")).folder
    program = api.standalone(folder=tmp_path_factory.mktemp("careful")).files[0]
    return Path(shutil.copy(runtime_lab.sanitized(folder, level.isa), program))


def test_the_program_is_clean(careful: Path, model: bitgen.Model) -> None:
    expected = "".join(model.generate("Once", 30, temperature=0, repeat_penalty=1))
    options = ["-n", "30", "--temp=0", "--repeat-penalty=1", "--context=40", "-t", "3"]
    assert text_of([str(careful)], "-p", "-", *options, stdin=b"Once") == f"Once{expected}\n"
    for arguments, code, _ in WRONG:
        done = run([str(careful)], *arguments)
        assert done.returncode == code and b"Sanitizer" not in done.stderr


def test_weights_that_are_missing_cut_or_others(careful: Path, tmp_path: Path) -> None:
    program = careful
    alone = Path(shutil.copy(program, tmp_path / "alone"))
    moved = [str(alone)]
    whole, weights = program.with_name("stories.bgpk").read_bytes(), tmp_path / "alone.bgpk"

    def refused(why: str, *arguments: str) -> bool:
        done = run(moved, "-p", "a", *arguments)
        assert b"Sanitizer" not in done.stderr and b"runtime error" not in done.stderr, done.stderr.decode()
        return done.returncode == 1 and done.stdout == b"" and why in done.stderr.decode()

    assert refused("alone.bgpk: the file cannot be opened")
    weights.write_bytes(whole)
    assert run(moved, "-p", "a", "-n", "3").returncode == 0
    for size in (10, 300, len(whole) // 2, len(whole) - 64, len(whole) - 1):
        weights.write_bytes(whole[:size])
        assert refused("not a packed model") or refused("holds no tokenizer"), size
    for at in range(len(whole) - 56, len(whole) - 24, 8):
        for value in (1, 64, 2**40, 2**64 - 64):
            weights.write_bytes(whole[:at] + struct.pack("<Q", value) + whole[at + 8 :])
            assert refused("not a packed model") or refused("holds no tokenizer"), (at, value)
    model_bytes = struct.unpack_from("<Q", whole, len(whole) - 48)[0]
    weights.write_bytes(whole[:model_bytes])  # a packed model as `bitgen run` keeps it
    assert refused("holds no tokenizer")
    weights.write_bytes(whole.replace(b"qkv=", b"qkw=", 1))
    assert refused("packed for other kernels")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="nothing says here what a process has mapped")
@pytest.mark.parametrize("removed", [True, False])
def test_weights_that_go_while_they_are_read(careful: Path, tmp_path: Path, removed: bool) -> None:
    """Removed they serve on; cut, whichever thread reads them, the program says so."""
    weights = Path(shutil.copy(careful.with_name("stories.bgpk"), tmp_path / "w.bgpk"))
    command = [careful, "-m", weights, "-p", "-", "-n", "3", "-t", "3"]
    running = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while str(weights) not in Path(f"/proc/{running.pid}/maps").read_text():
        assert running.poll() is None
    if removed:
        weights.unlink()
    else:
        time.sleep(0.5)  # for what is looked at when it opens; sooner or later, the program says the same
        os.truncate(weights, 4096)
    out, said = running.communicate(b"Once upon a time there was a dog", timeout=120)
    if removed:
        assert running.returncode == 0 and out.startswith(b"Once upon"), said
    else:
        advice = "was cut short or cannot be read any more; write it again"
        assert (running.returncode, said.decode()) == (1, f"stories: {weights}: {advice}\n")


def test_a_program_is_small_and_static(story: tuple[list[str], Path], arch: str) -> None:
    program = story[1].read_bytes()
    glibc = not find_compiler(targets.platform_of(arch)).zig  # which is larger than all the rest
    assert len(program) < (2 << 20 if glibc else 1 << 20)
    at, size, count = struct.unpack_from("<Q14xHH", program, 32)
    types = [struct.unpack_from("<I", program, at + i * size)[0] for i in range(count)]
    assert 1 in types and 3 not in types  # PT_LOAD; PT_INTERP, which a program with shared libraries has


@pytest.mark.slow
@pytest.mark.parametrize("system", ["windows", "macos"])
def test_programs_of_other_systems(system: str, model: bitgen.Model, tmp_path: Path) -> None:
    made = api.standalone(arch="x86_64", system=system, folder=tmp_path)
    assert made.files[0].read_bytes()[:4] in (b"MZ\x90\0", b"MZ\x78\0", b"\xcf\xfa\xed\xfe")
    if system == "windows" and shutil.which("wine"):
        expected = "".join(model.generate("naïve", 20, temperature=0, repeat_penalty=1))
        options = ("-p", "naïve", "-n", "20", "--temp", "0", "--repeat-penalty", "1")
        assert text_of(["wine", str(made.files[0])], *options) == f"naïve{expected}\n"


def test_all_in_one_file(model: bitgen.Model, tmp_path: Path) -> None:
    api.standalone(folder=tmp_path)
    made = api.standalone(folder=tmp_path, one_file=True)
    assert [file.name for file in tmp_path.iterdir()] == ["stories"] == [file.name for file in made.files]
    moved = made.files[0].rename(tmp_path / "tale")
    expected = "".join(model.generate("Once", 20, temperature=0, repeat_penalty=1))
    done = run([str(moved)], "-p", "Once", "-n", "20", "--temp", "0", "--repeat-penalty", "1")
    assert done.stdout.decode() == f"Once{expected}\n" and b" | tale on " in done.stderr


def test_other_heads(model: bitgen.Model, tmp_path: Path) -> None:
    for head in ("f16", "int8"):
        other = bitgen.Model.load(head=head)
        made = api.standalone(folder=tmp_path, head=head)
        expected = "".join(other.generate("Once", 30, temperature=0, repeat_penalty=1))
        options = ("-p", "Once", "-n", "30", "--temp", "0", "--repeat-penalty", "1")
        assert text_of([str(made.files[0])], *options) == f"Once{expected}\n"


@pytest.mark.parametrize("name", presets.names())
def test_the_levels_of_a_program_share_their_layouts(name: str) -> None:
    shape = presets.load(name)
    for arch in targets.ARCHES:
        for isa in (None, *(target.isa for target in levels(arch))):
            lookups, left_out = standalone.shared_layout(shape, targets.platform_of(arch), isa)
            held = [found.isa for found in lookups]
            assert {found.layout_key for found in lookups} == {lookups[0].layout_key}
            assert "scalar" in held and (isa is None or isa in held)
            assert [t.isa for t in levels(arch)] == sorted([*held, *left_out], key=[*targets.TARGETS].index)
            if isa is None:
                assert plan.of_model(shape, held[-2 if len(held) > 1 else -1]).layout_key == lookups[0].layout_key
                assert arch != "arm64" or not left_out


def test_a_level_of_another_architecture() -> None:
    with pytest.raises(UnsupportedError, match="not of architecture"):
        standalone.shared_layout(presets.load("stories"), targets.platform_of("arm64"), "avx2")


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standalone, "_append", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(BitgenError, match="No space left"):
        api.standalone(folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_from_the_command_line(tmp_path: Path) -> None:
    def invoke(*arguments: str) -> click.testing.Result:
        return click.testing.CliRunner().invoke(cli.main, ["build", *arguments, "-o", str(tmp_path)])

    done = invoke("--standalone")
    assert done.exit_code == 0, done.output
    assert str(tmp_path / "stories.bgpk") in done.output and "levels " in done.output
    assert invoke("--one-file").exit_code == 2
    unknown = invoke("--standalone", "-m", "2B4T")
    assert unknown.exit_code == 1 and "2B4T" in unknown.output
