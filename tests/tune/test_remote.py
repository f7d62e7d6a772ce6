"""Tuning on a device: the tuner by itself, and behind a real sshd of this machine that executes natively or by qemu."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import places
import pytest
from click.testing import CliRunner

from bitgen import api, cli, data, targets
from bitgen.compile import clang, library
from bitgen.compile.clang import BuildOptions
from bitgen.errors import BitgenError, EngineError, RemoteError, UnsupportedError
from bitgen.kernels import plan, space
from bitgen.spec import GemmShape, KernelSpec
from bitgen.tune import lab, remote, search
from bitgen.tune.remote import Device, RemoteLab, Tuner, ssh_command

ARM64 = targets.platform_of("arm64")
HOST = targets.host_arch()
ISA = targets.levels(targets.platform_of())[-2].isa if HOST != "riscv64" else "scalar"  # avx2, neon: the host has it
SHAPE = GemmShape(300, 256)  # three bands and zeros between them; panels of 8 and 64 rows do not fit evenly
QEMU = shutil.which("qemu-aarch64-static")


def few(shape: GemmShape, isa: str, effort: str = "quick") -> list[KernelSpec]:
    """The default and another layout: enough for a race, and quickly compiled."""
    layout = space.candidate_layouts(shape, isa)[-1]
    other = [KernelSpec(op, shape, isa, layout, space.candidate_tiles(op, shape, isa, layout)[0]) for op in OPS]
    return list(dict.fromkeys([*space.default_plan(shape, isa).specs(shape, isa), *other]))


OPS = ("gemv", "gemm")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Few candidates and rounds, a small stream, and plans of its own; objects are shared with the other tests."""
    monkeypatch.setattr(search, "candidates", few)
    monkeypatch.setattr(search, "ROUNDS", 2)
    monkeypatch.setattr(search, "REPEATS", 0)
    monkeypatch.setattr(lab, "stream_bytes", lambda read=None: 1 << 20)
    cached = data.cached
    monkeypatch.setattr(data, "cached", lambda kind: tmp_path / "cache" if kind == "plans" else cached(kind))


# ---- the tuner by itself --------------------------------------------------------------------------------------------


def program(specs: Sequence[KernelSpec], isa: str = ISA, arch: str = HOST) -> Path:
    return library.for_kernels(isa, specs, BuildOptions(targets.platform_of(arch), "tuner.c")).path


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


# ---- behind sshd ----------------------------------------------------------------------------------------------------

HEAD = """#!{python}
import os, sys
data = sys.stdin.buffer.read(int(sys.argv[2]))
real = f"{folder}/{name}.bin/real.{{os.getpid()}}"
with open(real, "wb") as f:
    f.write(data)
os.chmod(real, 0o700)
script = f"#!/bin/sh\\nexec {qemu} -cpu CPU {{real}}\\n".encode()
sys.stdout.buffer.write(script.ljust(len(data), b"\\n"))
"""
"""Stands for `head` on the device: what arrives is to run under qemu, since nothing here tells the kernel so."""

UNAME = "#!/bin/sh\necho Linux aarch64\n"

CHMOD = """#!/bin/sh
case $2 in {folder}/*) ;; *) exec /bin/chmod "$@" ;; esac
"""
"""Leaves what is in the device's temporary folder not executable, as a file system mounted noexec would."""


@dataclass(frozen=True)
class Server:
    """An sshd on this machine; each device is a key, which decides how commands are run."""

    folder: Path
    port: int

    @property
    def target(self) -> str:
        return f"localhost:{self.port}"

    def ssh(self, device: str) -> str:
        return f"ssh -F {shlex.quote(str(self.folder / 'ssh_config'))} -i {shlex.quote(str(self.folder / device))}"

    def left(self, device: str) -> list[str]:
        """What is in the device's temporary folder once nothing comes or goes any more."""
        for _ in range(100):
            found = [path.name for path in (self.folder / f"{device}.tmp").iterdir()]
            if not found:
                break
            time.sleep(0.1)
        return found


def key(path: Path) -> str:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path.with_suffix(".pub").read_text()


def device(folder: Path, name: str, **shims: str) -> str:
    """The authorized_keys line of a device; shims are programs that it has instead of the system's."""
    for each in (folder / f"{name}.tmp", tools := folder / f"{name}.bin"):
        each.mkdir()
    for tool, text in shims.items():
        (tools / tool).write_text(text.format(python=sys.executable, qemu=QEMU, folder=folder, name=name))
        (tools / tool).chmod(0o700)
    command = folder / f"{name}.sh"
    command.write_text(
        f"#!/bin/sh\necho 'Welcome!'\nPATH={shlex.quote(str(tools))}:$PATH\n"
        f'export TMPDIR={shlex.quote(str(folder / f"{name}.tmp"))}\neval "$SSH_ORIGINAL_COMMAND"\n'
    )
    command.chmod(0o700)
    return f'restrict,command="{command}" {key(folder / name)}'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    sshd = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin")
    if not sshd or not shutil.which("ssh") or not shutil.which("ssh-keygen"):
        pytest.skip("no sshd, ssh or ssh-keygen here (Debian: openssh-server, openssh-client)")
    folder = tmp_path_factory.mktemp("ssh")
    key(folder / "host")
    key(folder / "stranger")
    lines = [device(folder, "native"), device(folder, "noexec", chmod=CHMOD)]
    if QEMU:
        cpus = {"arm64": "max", "a53": "cortex-a53"}
        lines += [device(folder, name, uname=UNAME, head=HEAD.replace("CPU", cpu)) for name, cpu in cpus.items()]
    (folder / "authorized_keys").write_text("".join(lines))
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized_keys\n"
        f"PidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
    )
    (folder / "ssh_config").write_text(
        f"UserKnownHostsFile {folder}/known_hosts\nStrictHostKeyChecking accept-new\nIdentitiesOnly yes\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where Debian's sshd separates privileges
    with (folder / "log").open("wb") as log:
        running = subprocess.Popen([sshd, "-f", folder / "sshd_config", "-D", "-e"], stderr=log)
    made = Server(folder, port)
    try:
        for _ in range(100):
            if running.poll() is not None:
                pytest.skip(f"sshd does not start: {(folder / 'log').read_text()}")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        answer = subprocess.run(
            [*ssh_command(made.target, made.ssh("native")), "echo hello"], capture_output=True, text=True, timeout=60
        )
        if "hello" not in answer.stdout:
            pytest.skip(f"sshd lets nobody in: {answer.stderr}{(folder / 'log').read_text()}")
        yield made
    finally:
        running.terminate()
        running.wait()


def test_a_native_device(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    arguments = {"remote": server.target, "ssh": server.ssh("native"), "isa": ISA, "output": file}
    report = api.tune("stories", **arguments)
    assert (report.cpu, report.path, report.threads) == (plan.cpu_name(), file, len(os.sched_getaffinity(0)))
    assert report.build == f"bitgen build --model stories --arch {HOST} --plan {file}"
    made = plan.load(file)
    words = ["tune", "--model", "stories", "--remote", server.target, "--ssh", server.ssh("native"), "--isa", ISA]
    shown = CliRunner().invoke(cli.main, [*words, "-o", str(file)])
    assert shown.exit_code == 0 and shown.output.endswith(f"plan: {file}\nnext: {report.build}\n")
    assert made and made.basis == f"measured on {plan.cpu_name()} by ssh" and "clang version" in made.compiler
    assert server.left("native") == []


@pytest.mark.qemu
def test_an_arm64_device(server: Server) -> None:
    """Compiled here, verified and raced there, and the plan that comes back is what a build takes."""
    if QEMU is None:
        pytest.skip("qemu-aarch64-static is not installed (Debian: qemu-user-static)")
    shape = api.shape_of("stories")
    best = targets.levels(ARM64)[0].isa
    report = api.tune("stories", remote=server.target, ssh=server.ssh("arm64"), threads=2)
    assert (report.isa, report.path) == (best, plan.path_of(report.cpu, best))
    made = plan.for_build(report.path, shape, [best])
    assert set(made.decisions) == set(shape.matrices.values()) and "aarch64" in made.compiler
    for gemm, decision in made.decisions.items():
        tried = {s.symbol for s in few(gemm, best)}
        assert set(decision.evidence.gemv.tried) | set(decision.evidence.gemm.tried) == tried
    assert set(plan.of_model(shape, best, [made]).sources.values()) == {f"given, {made.basis}"}
    assert server.left("arm64") == []


@pytest.mark.qemu
def test_a_device_says_which_levels_it_executes(server: Server) -> None:
    if QEMU is None:
        pytest.skip("qemu-aarch64-static is not installed (Debian: qemu-user-static)")
    old = Device(server.target, ssh=server.ssh("a53"))
    assert (old.arch, old.isas) == ("arm64", ("neon", "scalar"))
    with pytest.raises(UnsupportedError, match="cannot execute 'dotprod', but neon, scalar"):
        old.lab("dotprod", few(SHAPE, "dotprod"), 1, lambda *_: None)
    assert Device(server.target, ssh=server.ssh("arm64")).isas == tuple(t.isa for t in targets.levels(ARM64))


def test_a_lost_connection_keeps_what_was_decided(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [SHAPE, GemmShape(128, 256)]
    decided: list[GemmShape] = []
    verify, decide = RemoteLab.verify, search.decide

    def lose(self: RemoteLab, spec: KernelSpec) -> None:
        verify(self, spec)
        if spec.shape == shapes[1]:
            self._tuner._process.kill()

    def counted(shape: GemmShape, *rest: object) -> plan.Decision:
        decided.append(shape)
        return decide(shape, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(search, "decide", counted)
    monkeypatch.setattr(search, "BUSY", 1e9)
    monkeypatch.setattr(search, "SPREAD", 1e9)
    site = Device(server.target, ssh=server.ssh("native"))
    with monkeypatch.context() as broken:
        broken.setattr(RemoteLab, "verify", lose)
        with pytest.raises(RemoteError, match=r"localhost:\d+ \(Linux .*lost midway; the same command goes on"):
            search.tune(shapes, ISA, 1, site=site)
    assert server.left("native") == []
    assert set(search.tune(shapes, ISA, 1, site=site).decisions) == set(shapes)
    assert decided == [*shapes, shapes[1]]


def test_an_interrupt_leaves_nothing_there(server: Server, tmp_path: Path) -> None:
    script = (
        "import test_remote as t, sys; from bitgen import cli; from bitgen.tune import lab, search\n"
        "search.candidates = t.few; lab.stream_bytes = lambda read=None: 1 << 20; search.ROUNDS = 10**9; cli.main()"
    )
    words = ("tune", "--model", "stories", "--isa", ISA, "--remote", server.target, "--ssh", server.ssh("native"))
    running = subprocess.Popen(
        [sys.executable, "-c", script, *words, "-o", str(tmp_path / "plan.json")],
        cwd=places.TESTS / "tune",
        env={**os.environ, "PYTHONPATH": f"{places.REPO}{os.pathsep}{places.LABS}"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    folder = server.folder / "native.tmp"
    await_(lambda: running.poll() is not None or any(folder.glob("*/tuner")), 120)
    time.sleep(0.5)
    os.killpg(running.pid, signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130 and "Traceback" not in errors, errors
    assert server.left("native") == []


def test_an_interrupt_waits_for_no_answer() -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    command = ["sh", "-c", "read -r x; exec sleep 600"]
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt), closing(Tuner(command, "here")) as talk:
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            talk.request("peak 1")
    finally:
        signal.signal(signal.SIGALRM, before)
    assert talk._process.returncode == -signal.SIGKILL


def await_(condition: Callable[[], bool], seconds: float) -> None:
    for _ in range(int(seconds * 20)):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("it never happened")


def test_a_wrong_architecture_is_told(server: Server) -> None:
    other = "riscv64" if HOST != "riscv64" else "arm64"
    with pytest.raises(RemoteError, match=r"the program does not start there .*--arch"):
        Device(server.target, other, ssh=server.ssh("native"))
    assert server.left("native") == []


@pytest.mark.parametrize("system", ["Linux armv7l", "Darwin arm64", "Linux s390x", ""])
def test_unknown_systems_are_told(system: str) -> None:
    with pytest.raises(RemoteError, match=r"Linux on x86_64, arm64"):
        remote._arch(f"pi@board ({system})")


def test_a_folder_where_nothing_executes_is_passed_over(server: Server) -> None:
    made = Device(server.target, ssh=server.ssh("noexec"))
    assert "scalar" in made.isas
    with closing(made.lab(ISA, few(SHAPE, ISA), 1, lambda *_: None)):
        assert any(Path("/tmp").glob("bitgen-tuner.*/tuner"))
        assert server.left("noexec") == []


def test_no_folder_may_execute(tmp_path: Path) -> None:
    """The script with another root of its folders: none of them is there."""
    script = remote.SCRIPT.replace('"${TMPDIR:-/tmp}" /tmp "${HOME:-.}"', "/nowhere /nowhere/else")
    with closing(Tuner(["sh", "-c", script], "here")) as made:
        made.receive_line()
        with pytest.raises(RemoteError, match=r"no folder where programs may execute.*\n  let TMPDIR name one there"):
            remote._bring(made, program(few(SHAPE, ISA)))


def test_a_program_cut_short_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with closing(Tuner(["sh", "-c", remote.SCRIPT.replace("head -c", "head -c 9; : ")], "here")) as made:
        made.receive_line()
        with pytest.raises(RemoteError, match=r"no room in .* for"):
            remote._bring(made, program(few(SHAPE, ISA)))
    assert list(tmp_path.glob("bitgen-tuner*")) == []


def test_refusals_say_what_to_do(server: Server, tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match=r"cannot connect: .*Permission denied \(publickey\).*\n  .*ssh-add"):
        Device(server.target, ssh=server.ssh("stranger"))
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(RemoteError, match=r"Connection refused.*\n  no SSH server listens there"):
        Device(f"localhost:{port}", ssh=server.ssh("native"))
    unknown = f"{server.ssh('native')} -o StrictHostKeyChecking=yes -o UserKnownHostsFile={tmp_path}/none"
    with pytest.raises(RemoteError, match=r"Host key verification failed.*\n  connect once by hand"):
        Device(server.target, ssh=unknown)


def test_ssh_comes_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITGEN_SSH", server.ssh("native"))
    assert Device(server.target).cpus == len(os.sched_getaffinity(0))
    assert clang.find_compiler(targets.platform_of(HOST)).version in Device(server.target).compiler


def test_options_of_a_device_without_one() -> None:
    shown = CliRunner().invoke(cli.main, ["tune", "--model", "stories", "--arch", "arm64"])
    assert shown.exit_code == 2 and "--arch goes with --remote or --cost-model" in shown.output


def test_a_plan_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BitgenError, match="there is no plan at"):
        api.build("stories", plans=[tmp_path / "none.json"])
