"""The tuner as a program by itself, natively and under qemu, and what a device may not make us believe."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from tuner_lab import HOST, ISA, QEMU, SHAPE, few, hurry, program

from bitgen import api, targets
from bitgen.errors import EngineError, RemoteError
from bitgen.kernels import space
from bitgen.spec import GemmShape, KernelSpec
from bitgen.tune import lab, remote
from bitgen.tune.remote import Device, RemoteLab, Tuner, ssh_command

ARM64 = targets.platform_of("arm64")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hurry(monkeypatch, tmp_path)


@pytest.fixture(params=["native", "arm64 under qemu"])
def tuner(request: pytest.FixtureRequest) -> Iterator[tuple[Tuner, list[KernelSpec]]]:
    """A running tuner with few kernels of one shape."""
    command, arch, isa = [], HOST, ISA
    if request.param != "native":
        if QEMU is None:
            pytest.skip("qemu-aarch64-static is not installed (Debian: qemu-user-static)")
        command, arch, isa = [QEMU, "-cpu", "cortex-a76"], "arm64", "dotprod"
    specs = few(SHAPE, isa)
    made = Tuner([*command, str(program(specs, isa, arch))], "here")
    made.greet()
    with closing(made):
        yield made, specs


def test_kernels_are_verified_and_timed(tuner: tuple[Tuner, list[KernelSpec]]) -> None:
    talk, specs = tuner
    made = RemoteLab(talk, specs, 2)
    for spec in specs:
        made.verify(spec)
        assert 0 < made.seconds(spec) < 10
        assert 0 < made.seconds(spec, 1) < 10
    assert made.bandwidth() > 0 and made.peak() > 0


def test_one_wrong_weight_of_a_zero_row_is_noticed(tuner: tuple[Tuner, list[KernelSpec]]) -> None:
    talk, specs = tuner
    made = RemoteLab(talk, specs, 2)
    assert not made._trial.codes[100].any()
    made._trial.codes[100, 3] = 1
    for spec in specs:
        with pytest.raises(EngineError, match=f"{spec.symbol} differs from the oracle"):
            made.verify(spec)


def test_bad_requests_are_answered_and_harmless(tuner: tuple[Tuner, list[KernelSpec]]) -> None:
    talk, specs = tuner
    talk.request("stream 4096")
    for request in (
        *("", "nonsense", "verify", "verify 0 0 1", "verify 0 0 1 1", "verify 99 0 1 1", "weights 0", "weights -1"),
        *("time 0 0 1 1 1 1", "time 0 4096 1 1 1 1", "time 0 1 1 1 1 1", "time 99 0 1 1 1 1", "bandwidth 0"),
        *("peak 100000", "stream 9000000000000000000", "levels 1", "levels x", "x" * 500, "x" * 5000, "cpus\0"),
        *("stream 9223372036854775808", "stream 64x", "stream 64 1", "stream  64", "stream +64", "stream 0x40"),
        *("stream -64", "time 4294967296 0 1 1 1 1", "time 0 0 1 1 4294967297 1", "time 0 0 4294967297 1 1 1"),
        *("time 0 0 1 4294967297 1 1", "time 0 0 1 1 1 4294967297", "time 0 0 1 1 1 1 1", "bandwidth 4294967297"),
    ):
        with pytest.raises(RemoteError, match="failed there"):
            talk.request(request)
    size, rows = lab.weight_bytes(specs[0]), bytes(4 * SHAPE.k)
    talk.request(f"weights {size}", *remote.spans(np.zeros(size, np.uint8)))
    talk.request(f"activations {len(rows)}", rows)
    assert talk.request("verify 0 3 1 1")
    for request in (
        *("verify 0 4611686018427387904 4611686018427387905 1", "verify 0 9223372036854775807 1 1", "verify 0 4 1 1"),
        *("verify 0 3 2 1", "verify 0 0 4294967297 1", "verify 4294967296 0 1 1", "verify 0 0 1 4294967297"),
        *("verify 0 0 0 1", "verify 0 0 1 0", "verify 0 0 1 1x"),
    ):
        with pytest.raises(RemoteError, match="failed there: an argument is null or out of range"):
            talk.request(request)
    assert talk.request("levels") == [f"{specs[0].isa}=1"]
    assert talk.file("/nowhere") == "" and "processor" in talk.file("/proc/cpuinfo")
    assert int(talk.request("cpus")[0]) == len(os.sched_getaffinity(0))


def test_a_program_that_dies_says_how() -> None:
    made = Tuner([str(program(few(SHAPE, ISA)))], "here")
    with closing(made):
        made.greet()
        made._process.send_signal(signal.SIGSEGV)
        with pytest.raises(RemoteError, match=r"lost midway; the same command goes on.*SIGSEGV"):
            made.request("levels")


def test_no_answer_in_time() -> None:
    with closing(Tuner(["cat"], "here")) as silent, pytest.raises(RemoteError, match="no answer in time"):
        silent.receive_line(0.1)


@pytest.mark.parametrize("data", ["", "aaaa", "ab" * 40, "a" * 100, "x" + "a" * 64 + "y" * 63 + "b" * 65 + "z"])
def test_spans_tell_all_bytes(data: str) -> None:
    bytes_ = np.frombuffer(data.encode(), np.uint8)
    told, message = b"", b"".join(remote.spans(bytes_))
    while message:
        n = int.from_bytes(message[:8], "little")
        told, message = told + message[8 : 8 + n], message[8 + n :]
        told, message = told + message[8:9] * int.from_bytes(message[:8], "little"), message[9:]
    assert told == data.encode()


@pytest.mark.parametrize("isa", targets.TARGETS)
def test_verification_of_a_large_matrix_is_a_small_message(isa: str) -> None:
    shape = GemmShape(6912, 2560)
    for layout in space.candidate_layouts(shape, isa):
        packed = lab.FORMATS[layout.format].pack(remote.banded(shape, np.random.default_rng(0)), layout)
        assert sum(map(len, remote.spans(packed))) < 300_000 < packed.size / 10


def test_the_stream_fits_a_small_board(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    board = {"/proc/meminfo": "MemTotal: 949448 kB\nMemAvailable:   400000 kB\n"}
    assert lab.stream_bytes(lambda path: board.get(path, "")) == 200000 << 10
    server = {"/sys/devices/system/cpu/cpu0/cache/index3/size": "131072K\n"}
    assert lab.stream_bytes(lambda path: server.get(path, "")) == 3 * 131072 << 10
    for junk in ("", "x", "-1K", "9" * 5000, "MemAvailable: x kB"):
        assert 256 << 20 <= lab.stream_bytes(lambda path, junk=junk: junk) <= 1536 << 20
    assert lab.stream_bytes(lambda path: "") == 256 << 20
    spec = few(GemmShape(4096, 4096), ISA)[0]
    walk = lab.WeightStream(1 << 20, [spec])  # less than the matrix: it grows to one
    assert walk.size == lab.weight_bytes(spec) and walk.place(spec, 24) == walk.place(spec, 24) == (0, 1)


@pytest.mark.parametrize(
    "target, ends",
    [
        ("board", ["--", "board"]),
        ("pi@board", ["--", "pi@board"]),
        ("pi@board:2222", ["-p", "2222", "--", "pi@board"]),
        ("pi@[fe80::1]:22", ["-p", "22", "--", "pi@fe80::1"]),
        ("[fe80::1%eth0]", ["--", "fe80::1%eth0"]),
        ("[::1]", ["--", "::1"]),
        ("my_board.lan:65535", ["-p", "65535", "--", "my_board.lan"]),
        ("a.b-c@192.0.2.7", ["--", "a.b-c@192.0.2.7"]),
    ],
)
def test_targets(target: str, ends: list[str]) -> None:
    command = ssh_command(target, "ssh -i 'a key'")
    assert command[:3] == ["ssh", "-i", "a key"]
    assert command[-len(ends) :] == ends and command[-len(ends) - 1].startswith("ServerAlive")
    assert "BatchMode=yes" in command


NO_TARGETS = (
    *("", " ", "pi@", "@board", "a b:c", "pi@board:port", "pi@@board", "a@b@c", "board:", "board\n", "bo\0ard"),
    *("-oProxyCommand=x", "-x@board", "pi@-oProxyCommand=x", "[-oProxyCommand=touch x]", "pi@[-oProxyCommand=x]:22"),
    *("[board]", "[]", "[::1", "::1", "fe80::1:22", "[fe80::1%]", "[fe80::1%$(x)]", "[1:2]", "[::1]x", "[:::]"),
    *("board:0", "board:65536", "board:99999999999", "board:-1", "board:\u0662", "$(x)", "`x`", "a;b", "a|b", "a&b"),
    *("a'b", 'a"b', "~/board", "%h", "*", "ssh://board", "pi$@board", "b\u043eard", "\x1b[2J"),
)


@pytest.mark.parametrize("target", NO_TARGETS)
def test_what_is_no_target(target: str) -> None:
    with pytest.raises(RemoteError, match=r"not \[user@\]host\[:port\]") as caught:
        ssh_command(target)
    assert str(caught.value).isprintable()
    with pytest.raises(RemoteError, match=r"not \[user@\]host\[:port\]"):
        api.tune("stories", remote=target)  # an empty one is not this host


def test_the_command_that_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong, why in (("ssh -i 'a", "No closing quotation"), ("", "names no program"), ("  ", "names no program"),
                       ("''", "names no program"), ("ssh \\", "No escaped character")):  # fmt: skip
        with pytest.raises(RemoteError, match=f"^--ssh .*{why}"):
            ssh_command("board", wrong)
    monkeypatch.setenv("BITGEN_SSH", "")
    assert ssh_command("board")[0] == "ssh"
    monkeypatch.setenv("BITGEN_SSH", "dbclient -y")
    assert ssh_command("board")[:2] == ["dbclient", "-y"] and ssh_command("board", "ssh")[0] == "ssh"


# ---- a device that lies ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "ask"),
    [
        *(("ok", talk) for talk in ("file /proc/cpuinfo", "cpus", "levels", "time", "bandwidth 1", "verify")),
        *((f"ok {size}", "file /proc/cpuinfo") for size in ("x", "-1", "99999999999999", "1e3")),
        *((f"ok {cpus}", "cpus") for cpus in ("0", "-4", "1000000000", "nan", "9" * 5000)),
        *((f"ok {levels}", "levels") for levels in ("avx2", "avx2=x", "a=1=2", "avx2=0", "../../x=1", "=1")),
        *((f"ok {times}", "time") for times in ("nan", "inf", "0", "-1", "1e300", "1 2 x")),
        *((f"ok {rate}", "bandwidth 1") for rate in ("nan", "inf", "0", "-1", "x")),
    ],
)
def test_an_answer_that_makes_no_sense_is_a_sentence(reply: str, ask: str) -> None:
    asked = {
        "file /proc/cpuinfo": lambda talk: talk.file("/proc/cpuinfo"),
        "cpus": lambda talk: talk.read("cpus", remote._cpus),
        "levels": lambda talk: talk.read("levels", remote._executed),
        "time": lambda talk: talk.read("time", remote._median),
        "bandwidth 1": lambda talk: talk.read("bandwidth 1", remote._rate),
        "verify": lambda talk: talk.read("verify", remote._checksum),
    }
    with closing(Tuner(["sh", "-c", f"read -r x; echo '{reply}'; cat >/dev/null"], "here")) as talk:
        with pytest.raises(RemoteError, match=f"^here: `{ask}` makes no sense there: ") as caught:
            asked[ask](talk)
        assert len(str(caught.value)) < 300 and str(caught.value).isprintable()


def test_what_a_device_says_is_not_printed_as_it_is() -> None:
    for script in ("printf 'no \\033[2J%01000d\\n' 0", "echo ok; printf '\\033]0;x\\007' >&2; exit 3"):
        with closing(Tuner(["sh", "-c", f"read -r x; {script}"], "here")) as talk:
            with pytest.raises(RemoteError) as caught:
                for _ in range(2):
                    talk.request("levels")
            assert str(caught.value).isprintable() and len(str(caught.value)) < 300


def test_a_line_without_end_is_cut_off() -> None:
    with closing(Tuner(["sh", "-c", "tr '\\0' x </dev/zero"], "here")) as talk, pytest.raises(RemoteError) as caught:
        talk.receive_line()
    assert "a line of more than 65536 bytes" in str(caught.value)


def test_a_login_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A greeting that never names the system, however many lines come in time."""
    ssh = tmp_path / "ssh"
    ssh.write_text("#!/bin/sh\nwhile sleep 0.01; do echo Welcome; done\n")
    ssh.chmod(0o700)
    monkeypatch.setattr(remote, "CONNECT_SECONDS", 0.5)
    with pytest.raises(RemoteError, match="no answer in time"):
        Device("board", ssh=str(ssh))


def test_what_files_of_a_device_say_is_not_trusted() -> None:
    for junk in ("", "x", "-1K", "9" * 5000, "MemAvailable: 99999999999999999999999 kB", "\u0662\u0663K"):
        assert 0 <= remote._load(junk) < 1e7
    assert remote._load("1.50 2.00 3.00 1/2 3") == 1.5


def test_without_ssh() -> None:
    with pytest.raises(RemoteError, match=r"cannot run no-such-ssh: No such file.*install OpenSSH"):
        Device("board", ssh="no-such-ssh")
