"""Programs without Python: the tokenizer in C gives the ids of `tokenizers`, under the sanitizers; the program
gives the text of the Python path, here and under qemu; what is damaged or wrong is refused."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import places
import pytest
import runtime_lab
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_files import TEXTS, byte_level, piece_keys, repetitive, saved, trained_pieces

import bitgen
from bitgen import api, cli, data, headers, targets
from bitgen.checkpoints import presets, synth
from bitgen.compile import library, standalone
from bitgen.compile.clang import COMMON_FLAGS, BuildOptions, find_compiler
from bitgen.convert.hf_tokenizer import metadata_from_hf
from bitgen.errors import BitgenError, CompileError, UnsupportedError
from bitgen.kernels import plan
from bitgen.text import tables
from bitgen.text.tokenizer import WORDS, TextStream, Tokenizer, Words

# ---- the tokenizer -------------------------------------------------------------------------------------------

SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1"]


class Lab:
    """A tokenizer in C behind a pipe (tokenizer_lab.c), and the one in Python that it must equal."""

    def __init__(self, program: Path, blob: Path, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.program, self.path = tokenizer, program, blob
        blob.write_bytes(tables.blob(tokenizer))
        self.pipe: Any = subprocess.Popen([program, blob], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def encode(self, text: str | bytes) -> list[int] | int:
        """Ids, or an error code."""
        raw = text.encode() if isinstance(text, str) else text
        n = self._call(0, len(raw), raw)
        return n if n < 0 else np.frombuffer(self.pipe.stdout.read(4 * n), np.int32).tolist()

    def decode(self, ids: list[int]) -> str:
        n = self._call(1, len(ids), np.array(ids, np.int32).tobytes())
        return self.pipe.stdout.read(n).decode()

    def _call(self, kind: int, count: int, payload: bytes) -> int:
        self.pipe.stdin.write(struct.pack("<ii", kind, count) + payload)
        self.pipe.stdin.flush()
        return struct.unpack("<i", self.pipe.stdout.read(4))[0]

    def agrees(self, text: str) -> bool:
        return self.encode(text) == self.tokenizer.encode(text)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tokenizer_lab.c, with AddressSanitizer and UBSan where the compiler has them."""
    try:
        compiler = find_compiler(targets.platform_of())
    except CompileError as e:
        pytest.skip(str(e))
    runtime, made = data.folder("runtime"), tmp_path_factory.mktemp("lab") / "tokenizer_lab"
    files = [runtime / file for file in library.runtime_files(*library.PROGRAMS["run.c"])]
    flags = [*compiler.target_flags(targets.platform_of()), *COMMON_FLAGS, *([] if compiler.zig else SANITIZERS)]
    source = places.LABS / "tokenizer_lab.c"
    subprocess.run([*compiler.command, *flags, f"-I{runtime}", source, *files, "-o", made], check=True)
    return made


@pytest.fixture(scope="module")
def piece_model(tmp_path_factory: pytest.TempPathFactory) -> sentencepiece.SentencePieceProcessor:
    return trained_pieces(tmp_path_factory.mktemp("spm"))


def levels(arch: str) -> list[targets.Target]:
    """The ISA levels of an architecture on the default system."""
    return targets.levels(targets.platform_of(arch))


def first_of_each(words: dict[str, Words]) -> list[str]:
    """One name of each way to cut words."""
    return list({how: name for name, how in reversed(words.items())}.values())


@pytest.fixture(scope="module", params=[*first_of_each(WORDS), "sentencepiece", "stories"])
def lab(request: pytest.FixtureRequest, program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("vocabulary")
    if request.param == "stories":
        tokenizer = bitgen.Model.load().tokenizer
    elif request.param == "sentencepiece":
        tokenizer = Tokenizer.from_metadata(piece_keys(request.getfixturevalue("piece_model")))
    else:
        keys = metadata_from_hf(saved(folder, byte_level()))
        tokenizer = Tokenizer.from_metadata(keys | {"tokenizer.ggml.pre": request.param})
    yield from piped(program, folder, tokenizer)


def piped(program: Path, folder: Path, tokenizer: Tokenizer) -> Iterator[Lab]:
    made = Lab(program, folder / "vocabulary", tokenizer)
    yield made
    made.pipe.stdin.close()
    assert made.pipe.wait(60) == 0  # nothing leaked, nothing undefined


ASSIGNED = [c for c in tables._CODES if c < 0x40000 or c >> 16 == 14 or c % 89 == 0]


def test_every_character(lab: Lab) -> None:
    """In an order in which letters, numbers, spaces and marks meet."""
    codes = random.Random(0).sample(ASSIGNED, len(ASSIGNED))
    assert lab.agrees("".join(map(chr, codes)))


def test_characters_in_contractions(lab: Lab) -> None:
    codes = [*range(0x2C00), *range(0xA640, 0xAC00), *range(0xFB00, 0xFB20), *range(0xFF00, 0xFF60)]
    assert lab.agrees("".join(f"'{c} 'r{c}'{c}e 'l{c}" for c in map(chr, codes)))


SCRIPTS = "The quick brown fox. L'été où naïveté. Straße, Ωμέγα, Привет мир! 你好,世界。日本語のテキスト 한국어 텍스트 "
SCRIPTS += (
    "हिन्दी में पाठ مرحبا بالعالم שלום ไทย ภาษา Việt Nam ខ្មែរ தமிழ் 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 👩‍👩‍👧‍👦 ½ ٣٤ Ⅷ ①\u00a0\u2003\u3000\t\r\n"
)


def test_texts(lab: Lab) -> None:
    rng = random.Random(1)
    pool = [
        *SCRIPTS,
        *"  \n\n''()$+<=>^~|<s>",
        *["'s", "'T", "'re", "'VE", "'m", "'Ll", "'D", "'ſ", "<|eot_id|>", "<|begin|>", "</s>", "e\u0301"],
    ]
    texts = [*TEXTS, SCRIPTS, *(repetitive(rng, 20) for _ in range(300))]
    texts += ["".join(rng.choice(pool) for _ in range(rng.randrange(24))) for _ in range(6000)]
    assert [text for text in texts if not lab.agrees(text)] == []


def test_files_of_this_repository(lab: Lab) -> None:
    for path in (Path(__file__), data.folder("runtime") / "text" / "tokenizer.c", places.REPO / "README.md"):
        assert lab.agrees(path.read_text(encoding="utf-8"))


RUNS = ["a", " ", "ab", "\n", " \n", "e\u0301\u0323", "\u0301\u0323", "'", "<|", "1", "日本", "👩\u200d", " a", "lol"]


@pytest.mark.parametrize("unit", RUNS)
def test_long_runs(lab: Lab, unit: str) -> None:
    assert lab.agrees(unit * (100_000 // len(unit)) + "a")


@settings(max_examples=300, deadline=None)
@given(text=st.text() | st.text(st.sampled_from(SCRIPTS + "'stre <|\u0323\u0301\u1100\u1161\u11a8"), max_size=60))
def test_any_text(lab: Lab, text: str) -> None:
    assert lab.agrees(text)


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(-3, 700), max_size=40))
def test_any_ids(lab: Lab, ids: list[int]) -> None:
    stream = TextStream(lab.tokenizer)
    assert lab.decode(ids) == "".join(map(stream.push, ids)) + stream.flush()


def test_text_that_is_not_utf8(lab: Lab) -> None:
    good = "aé世👩".encode()
    assert lab.encode(good) == lab.tokenizer.encode(good.decode())
    rng = random.Random(2)
    samples = [
        b"\xff",
        b"\x80",
        b"\xc0\x80",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xe0\x80\x80",
        good[:-1],
        good[:5],
    ]
    samples += [bytes(rng.choices([0x41, 0x80, 0xBF, 0xC3, 0xE4, 0xED, 0xF0, 0xF4, 0xA0], k=5)) for _ in range(2000)]
    for sample in samples:
        try:
            assert lab.encode(sample) == lab.tokenizer.encode(sample.decode())
        except UnicodeDecodeError:
            assert lab.encode(sample) == -10, sample  # BG_E_VALUE


def test_bytes_that_are_not_utf8_stream_as_in_python(program: Path, tmp_path: Path) -> None:
    tokenizer, rng = Tokenizer.from_metadata(synth.vocabulary(300)), random.Random(3)
    pool = tokenizer.encode("a\x80\xbf\xc3\xe4é世👩", add_bos=False)
    for lab in piped(program, tmp_path, tokenizer):
        for _ in range(2000):
            ids = rng.choices(pool, k=9)
            stream = TextStream(tokenizer)
            assert lab.decode(ids) == "".join(map(stream.push, ids)) + stream.flush()


def test_normalisation(program: Path, tmp_path: Path) -> None:
    """Marks in any order, whatever decomposes with marks behind it, Hangul by its parts."""
    keys = metadata_from_hf(saved(tmp_path, byte_level()))
    tokenizer, rng = Tokenizer.from_metadata(keys | {"tokenizer.ggml.pre": "qwen2"}), random.Random(4)
    _, decomposed, codes, composed = tables._normal_forms()
    starts, parts = [row[0] for row in decomposed], [*codes, *(row[1] for row in composed)]
    hangul = [*range(0x10FE, 0x1114), *range(0x115F, 0x1178), *range(0x11A5, 0x11C5), 0xAC00, 0xAC01, 0xD7A3, 0xAC1C]
    for lab in piped(program, tmp_path, tokenizer):
        assert lab.agrees("".join(map(chr, starts))) and lab.agrees("".join(chr(c) + "\u0323\u0301" for c in starts))
        for pool in (parts, [*parts[::40], 0x41, 0x345, 0x334, 0x301, 0x323, 0x327], hangul):
            for _ in range(300):
                assert lab.agrees("".join(map(chr, rng.choices(pool, k=60))))


@pytest.mark.parametrize("byte_tokens", ["all", "some", "none"])
@pytest.mark.parametrize("unknown", [True, False])
@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_of_every_kind(
    byte_tokens: str, unknown: bool, prefix: bool, request: pytest.FixtureRequest, program: Path, tmp_path: Path
) -> None:
    keys = piece_keys(request.getfixturevalue("piece_model"))
    types = keys["tokenizer.ggml.token_type"]
    tokens = keys["tokenizer.ggml.tokens"] = list(keys["tokenizer.ggml.tokens"])
    for id in np.flatnonzero(types == 6).tolist():
        if byte_tokens == "none" or (byte_tokens == "some" and id % 3 == 0):
            types[id], tokens[id] = 5, f"[unused {id}]"
    if not unknown:
        types[types == 2] = 5
    types[300] = 4  # found in a text before it is cut
    keys["tokenizer.ggml.add_space_prefix"] = prefix
    tokenizer, rng = Tokenizer.from_metadata(keys), random.Random(5)
    for lab in piped(program, tmp_path, tokenizer):
        for _ in range(500):
            assert lab.agrees(
                "".join(rng.choice("lo ab\U0001f642é\u07ff\u0600日hA<s>") for _ in range(rng.randrange(20)))
            )
            ids = rng.choices(range(len(tokens)), k=20)
            stream = TextStream(tokenizer)
            assert lab.decode(ids) == "".join(map(stream.push, ids)) + stream.flush()


def test_special_tokens_within_each_other(program: Path, tmp_path: Path) -> None:
    """The leftmost is found, and of those that start there the longest."""
    keys = synth.vocabulary(300)
    for id, token in enumerate(("<a", "<a>", "<a><b>", "<a><b><c>", "<b>", "a>", "éa", "ééa"), 280):
        keys["tokenizer.ggml.tokens"][id], keys["tokenizer.ggml.token_type"][id] = token, 3 + id % 2
    tokenizer, rng = Tokenizer.from_metadata(keys), random.Random(6)
    for lab in piped(program, tmp_path, tokenizer):
        for _ in range(3000):
            assert lab.agrees("".join(rng.choice(["<", "a", "b", "c", ">", "<a", "><", "é"]) for _ in range(12)))


@pytest.fixture(scope="module")
def llama3(fixtures: Path, program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with gzip.open(fixtures / "llama3" / "vocab.json.gz") as f:
        stored = json.load(f)
    keys = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": stored["tokens"],
        "tokenizer.ggml.merges": stored["merges"],
        "tokenizer.ggml.token_type": np.repeat(np.array([1, 3], np.int32), [128000, 256]),
        "tokenizer.ggml.bos_token_id": 128000,
        "tokenizer.ggml.eos_token_id": 128001,
    }
    yield from piped(program, tmp_path_factory.mktemp("llama3"), Tokenizer.from_metadata(keys))


def test_llama3(llama3: Lab, fixtures: Path) -> None:
    for sample in json.loads((fixtures / "llama3" / "samples.json").read_text(encoding="utf-8")):
        assert llama3.encode(sample["text"]) == [128000, *sample["ids"]]
        assert llama3.decode(sample["ids"]) == sample["text"].replace("<|eot_id|>", "")
    test_texts(llama3)
    test_every_character(llama3)
    test_files_of_this_repository(llama3)
    for unit in RUNS:
        test_long_runs(llama3, unit)
    assert llama3.encode("<|begin_of_text|>a<|eot_id|>") == [128000, 64, 128009]


def test_patterns_unknown_to_the_c_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(WORDS, "odd", Words((r"\p{Lu}+",)))
    keys = metadata_from_hf(saved(tmp_path, byte_level())) | {"tokenizer.ggml.pre": "odd"}
    with pytest.raises(UnsupportedError, match="no counterpart"):
        tables.blob(Tokenizer.from_metadata(keys))


def test_damaged_vocabularies(program: Path, tmp_path: Path) -> None:
    """Refused, or harmless: nothing outside the block is read, whatever it says."""
    keys = metadata_from_hf(saved(tmp_path, byte_level())) | {"tokenizer.ggml.pre": "qwen2"}
    whole, rng, damaged = tables.blob(Tokenizer.from_metadata(keys)), random.Random(7), tmp_path / "damaged"
    text = (SCRIPTS + "<|eot_id|>e\u0301").encode()
    calls = struct.pack("<ii", 0, len(text)) + text + struct.pack("<ii", 1, 600) + np.arange(600, dtype="<i4").tobytes()

    def refused(blob: bytes) -> bool:
        damaged.write_bytes(blob)
        done = subprocess.run([program, damaged], input=calls, capture_output=True, timeout=60)
        assert done.returncode in (0, 1) and b"Sanitizer" not in done.stderr and b"runtime" not in done.stderr, (
            done.stderr
        )
        return done.returncode == 1

    assert not refused(whole)
    declared = headers.declared(tables.HEADER)
    header = declared.sizeof("vocabulary_header")
    for size in (0, 7, header - 1, header, len(whole) - 64, len(whole) - 1):
        assert refused(whole[:size])
        if size >= header:  # one that agrees with the shorter block
            refused(whole[:12] + struct.pack("<I", size) + whole[16:size])
    for at in range(0, header, 4):
        for value in (0xFFFFFFFF, 0x7FFFFFFF, 1):
            refused(whole[:at] + struct.pack("<I", value) + whole[at + 4 :])
    offsets = [section.offset for section in declared.from_buffer("vocabulary_header *", whole).sections]
    for offset, size in zip(offsets, (*offsets[1:], len(whole)), strict=True):
        for _ in range(12):
            at = (
                rng.randrange(offset, max(min(offset + 4000, size if size > offset else len(whole)), offset + 4))
                // 4
                * 4
            )
            refused(whole[:at] + struct.pack("<I", rng.choice([0xFFFFFFFF, 0x80000000, 9999999])) + whole[at + 4 :])


class Tables:
    """The sections of a vocabulary's file by name, to be changed where they lie."""

    def __init__(self, blob: bytes) -> None:
        self.file, declared = bytearray(blob), headers.declared(tables.HEADER)
        self.header = declared.from_buffer("vocabulary_header *", self.file)
        self._numbers = headers.constants(tables.HEADER, "section")
        self._types = dict(declared.typeof("vocabulary").fields)

    def __getitem__(self, name: str) -> np.ndarray:
        place = self.header.sections[self._numbers[name]]
        element = headers.dtype(self._types[name.lower()].type.item)
        return np.frombuffer(self.file, element, place.count, place.offset)

    def set(self, name: str, at: int, **fields: int) -> None:
        for field, value in fields.items():
            self[name][field][at] = value

    def swap(self, name: str) -> None:
        self[name][[0, 1]] = self[name][[1, 0]]


def half_a_character(t: Tables) -> None:
    """The last special token is a byte that only ends characters."""
    t.set("SPECIALS", -1, text=(bytes(t["STRINGS"]).index(0x96), 1))


FALSE_TABLES = {
    "a special token that is half a character": half_a_character,
    "special tokens in another order": lambda t: t.swap("SPECIALS"),
    "spellings in another order": lambda t: t.swap("SPELLINGS"),
    "merges in another order": lambda t: t["MERGES"].__setitem__(slice(None), t["MERGES"][::-1].copy()),
    "decompositions in another order": lambda t: t.swap("DECOMPOSED"),
    "a decomposition to nothing": lambda t: t.set("DECOMPOSED", 5, length=0),
    "a decomposition to more than there is room for": lambda t: t.set("DECOMPOSED", 5, length=9),
    "a surrogate": lambda t: t["CODES"].__setitem__(3, 0xD800),
    "compositions in another order": lambda t: t.swap("COMPOSED"),
    "two that compose to a surrogate": lambda t: t.set("COMPOSED", 3, code=0xDFFF),
    "a flag of tomorrow": lambda t: setattr(t.header, "flags", t.header.flags | 64),
}


@pytest.mark.parametrize("what", FALSE_TABLES)
def test_tables_that_the_code_could_not_use(what: str, program: Path, tmp_path: Path) -> None:
    """Each agrees with its header and lies inside, but searches and UTF-8 would go wrong."""
    keys = metadata_from_hf(saved(tmp_path, byte_level())) | {"tokenizer.ggml.pre": "qwen2"}
    made = Tables(tables.blob(Tokenizer.from_metadata(keys)))
    path, text = tmp_path / "vocabulary", "\U00016820".encode()  # f0 96 a0 80
    for false in (False, True):
        if false:
            FALSE_TABLES[what](made)
        path.write_bytes(made.file)
        call = struct.pack("<ii", 0, len(text)) + text
        done = subprocess.run([program, path], input=call, capture_output=True, timeout=60)
        assert (done.returncode, done.stderr) == ((1, b"not a vocabulary\n") if false else (0, b""))


# ---- programs ------------------------------------------------------------------------------------------------

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
