"""The tokenizer of programs without Python: in C it gives the ids of `tokenizers`, under the sanitizers."""

from __future__ import annotations

import gzip
import json
import random
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import places
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_files import TEXTS, byte_level, piece_keys, repetitive, saved, trained_pieces

import bitgen
from bitgen import data, headers, targets
from bitgen.checkpoints import synth
from bitgen.compile import library
from bitgen.compile.clang import COMMON_FLAGS, find_compiler
from bitgen.convert.hf_tokenizer import metadata_from_hf
from bitgen.errors import CompileError, UnsupportedError
from bitgen.text import tables
from bitgen.text.tokenizer import WORDS, TextStream, Tokenizer, Words

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
