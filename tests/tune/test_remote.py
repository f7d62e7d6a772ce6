"""Tuning on a device behind a real sshd of this machine, which executes natively or by qemu."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import places
import pytest
from click.testing import CliRunner
from tuner_lab import HOST, ISA, QEMU, SHAPE, few, hurry, program

from bitgen import api, cli, targets
from bitgen.compile import clang
from bitgen.errors import BitgenError, RemoteError, UnsupportedError
from bitgen.kernels import plan
from bitgen.spec import GemmShape, KernelSpec
from bitgen.tune import remote, search
from bitgen.tune.remote import Device, RemoteLab, Tuner, ssh_command

ARM64 = targets.platform_of("arm64")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hurry(monkeypatch, tmp_path)


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
        "import tuner_lab; from bitgen import cli; from bitgen.tune import lab, search\n"
        "search.candidates, search.ROUNDS, lab.stream_bytes = tuner_lab.few, 10**9, lambda read=None: 1 << 20\n"
        "cli.main()"
    )
    words = ("tune", "--model", "stories", "--isa", ISA, "--remote", server.target, "--ssh", server.ssh("native"))
    running = subprocess.Popen(
        [sys.executable, "-c", script, *words, "-o", str(tmp_path / "plan.json")],
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
