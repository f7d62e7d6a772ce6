"""Kernels followed through their assembly: small programs with known counts, and real ones beside their execution."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import kernel_lab
import numpy as np
import pytest

from bitgen import targets
from bitgen.errors import BitgenError
from bitgen.kernels import space
from bitgen.kernels.formats import FORMATS
from bitgen.spec import GemmShape, KernelSpec, Layout, Tile
from bitgen.tune import cost_model, trace

ARM = """
run:
	mov	x8, xzr
.LBB0_1:
	add	x8, x8, #64
	ldp	q0, q1, [x0], #32
	mov	w9, #3
.LBB0_2:
	sub	w9, w9, #1
	sdot	v2.4s, v0.16b, v1.16b
	cbnz	w9, .LBB0_2
// %bb.3:
	cmp	x8, #10, lsl #12                // =40960
	b.ne	.LBB0_1
	ret
"""

X86 = """
run:
	xorl	%eax, %eax
	pushq	%rbx
.LBB0_1:
	vmovdqu	(%rdi,%rax), %ymm0
	addq	$64, %rax
	movl	$3, %ebx
.Ltmp1:
.LBB0_2:
	decl	%ebx
	jne	.LBB0_2
# %bb.3:
	cmpq	$40960, %rax                    # imm = 0xA000
	jb	.LBB0_1
	popq	%rbx
	retq
"""


def test_nested_loops_are_counted() -> None:
    for text, arch, outside, inside in ((ARM, "arm64", 5, 3), (X86, "x86_64", 5, 2)):
        profile = trace.follow(trace.parse(text, arch), 1, 1)
        first, *_ = profile.paths
        assert (first.label, first.count, first.loops) == (".LBB0_2", 3 * 640, True)
        ends = 2 if arch == "arm64" else 4
        assert profile.instructions == ends + 640 * outside + 3 * 640 * inside


def follow_body(arch: str, body: str) -> float:
    """How often the one loop of a function runs: what its lines leave in the counter."""
    down, ret = (
        ("subs	x8, x8, #1\n	b.ne	.LBB0_1", "ret")
        if arch == "arm64"
        else ("decq	%rax\n	jne	.LBB0_1", "retq")
    )
    text = f"run:\n{body}\n.LBB0_1:\n	{down}\n	{ret}\n"
    return trace.follow(trace.parse(text, arch), 7, 5).paths[0].count


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ("mov w8, w2", 7),
        ("sxtw x8, w5", 5),
        ("mov w9, #-6\nneg w8, w9", 6),
        ("mov w9, #-12\nasr w8, w9, #1\nneg w8, w8", 6),
        ("mov w9, #-12\nlsr w8, w9, #30", 3),
        ("add x8, x2, w5, sxtw #2", 27),
        ("madd x8, x2, x5, x2", 42),
        ("mov x9, #1\nmovk x9, #1, lsl #16\nlsr x8, x9, #14", 4),
        ("ubfx w8, w2, #1, #2", 3),
        ("ubfiz x8, x2, #3, #2", 24),
        ("mov w8, #0\nbfi w8, w2, #1, #2", 6),
        ("mov w9, #20\nudiv w8, w9, w2", 2),
        ("mov w9, #-20\nsdiv w8, w9, w2\nneg w8, w8", 2),
        ("cmp w2, w5\ncsel w8, w2, w5, gt", 7),
        ("cmp w2, w5\ncsinc w8, w2, w5, lo", 6),
        ("cmp w2, #7\ncset w8, eq", 1),
        ("cmp w2, #7\nccmp w5, #9, #4, eq\ncsel w8, w2, w5, lt", 7),
        ("tst w2, #4\ncsel w8, w2, w5, ne", 7),
        ("str x2, [sp, #-16]!\nldr x8, [sp], #16", 7),
        ("stp w2, w5, [sp, #-8]!\nldrb w8, [sp, #4]", 5),
        ("mov w9, #-7\nsturb w9, [sp, #-1]\nldursb w8, [sp, #-1]\nneg w8, w8", 7),
        ("mov x8, #4\ntbz w2, #1, .LBB0_1\nmov x8, #9", 9),
    ],
)
def test_arm64_instructions(body: str, count: int) -> None:
    assert follow_body("arm64", body) == count


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ("movslq %r9d, %rax", 5),
        ("leaq 3(%rdx,%r9,4), %rax", 30),
        ("movl $-12, %eax\nsarl %eax\nnegl %eax", 6),
        ("movl $-12, %eax\nshrl $30, %eax", 3),
        ("imulq $6, %rdx, %rax", 42),
        ("movl $20, %eax\nxorl %edx, %edx\ndivl %r9d", 4),
        ("movl $-20, %eax\ncltd\nidivl %r9d\nnegl %eax", 4),
        ("movl %edx, %eax\ncmpl %r9d, %edx\ncmovlel %r9d, %eax", 7),
        ("movl %edx, %eax\ncmpl %edx, %r9d\ncmovbl %r9d, %eax", 5),
        ("xorl %eax, %eax\ncmpl $7, %edx\nsete %al", 1),
        ("movl $1280, %eax\nmovb $3, %al\nshrl $8, %eax", 5),
        ("vmovd %xmm0, %eax\nmovb $3, %al\nmovzbl %al, %eax", 3),
        ("pushq %rdx\nmovl (%rsp), %eax\npopq %rdx", 7),
        ("movl %edx, -8(%rsp)\nnegl -8(%rsp)\nmovslq -8(%rsp), %rax\nnotq %rax\nincq %rax", 7),
        ("movq 8(%rsp), %rax\nsubq %rax, %rax\naddq $4, %rax", 4),
    ],
)
def test_x86_64_instructions(body: str, count: int) -> None:
    assert follow_body("x86_64", body) == count


def test_jump_tables_and_calls() -> None:
    text = """
helper:
	movl	$6, %eax
	retq
run:
	leaq	.LJTI1_0(%rip), %rcx
	movslq	4(%rcx), %rax
	addq	%rcx, %rax
	jmpq	*%rax
.LBB1_1:
	callq	memset@PLT
	retq
.LBB1_2:
	callq	helper
.LBB1_3:
	decl	%eax
	jne	.LBB1_3
	jmp	.LBB1_1
	.section	.rodata
.LJTI1_0:
	.long	.LBB1_1-.LJTI1_0
	.long	.LBB1_2-.LJTI1_0
"""
    assert trace.follow(trace.parse(text, "x86_64"), 1, 1).instructions == 4 + 1 + 2 + 12 + 1 + 2


def test_a_branch_on_data_is_an_error() -> None:
    for arch, body in (("arm64", "ldrb w9, [x0]\ncbz w9, .LBB0_1"), ("x86_64", "cmpb $0, (%rdi)\nje .LBB0_1")):
        with pytest.raises(BitgenError, match="depends on data"):
            follow_body(arch, body)
    with pytest.raises(BitgenError, match="not of riscv64"):
        trace.parse("", "riscv64")


def some_specs(m: int, k: int) -> list[KernelSpec]:
    """Of every template its decode kernel, and its prefill kernel of each kind."""
    found = []
    for (name, isa), template in space.TEMPLATES.items():
        layout = Layout(name, template.bm[0], template.bk[0])
        shape = GemmShape(m, k, layout.bk if FORMATS[name].grouped else 0, FORMATS[name].binary)
        found.append(KernelSpec("gemv", shape, isa, layout, Tile()))
        for groups in template.lut_groups:
            found.append(KernelSpec("gemm", shape, isa, layout, Tile(template.nr[0], 0, lut_groups=groups)))
    return [spec for spec in found if space.legal(spec) is None and spec.tile.lut_groups <= 8]


@functools.cache
def parsed(spec: KernelSpec) -> trace.Program:
    arch = targets.target(spec.isa).arch
    return cost_model.kernel_program(spec, targets.host_arch() if arch == "any" else arch)


def followed(spec: KernelSpec, n: int, panels: int) -> trace.Profile:
    return trace.follow(parsed(spec), n, panels)


@pytest.mark.parametrize("spec", some_specs(64, 640), ids=lambda spec: spec.symbol)
def test_every_template_can_be_followed(spec: KernelSpec) -> None:
    """And has a plausible number of instructions; where one loop does nearly all, a pass has weights of every row."""
    n = 1 if spec.op == "gemv" else 4
    if (spec.isa, spec.op) == ("amx", "gemm"):
        with pytest.raises(BitgenError, match="depends on data"):  # it compares tile configurations as vectors
            followed(spec, 64, 16)
        return
    products = spec.layout.bm * FORMATS[spec.layout.format].geometry(spec.shape, spec.layout).k_pad * n
    profile = followed(spec, n, 1)
    each = profile.instructions / products
    assert (1 < each < 10) if spec.isa == "scalar" else (0.03 < each < (0.6 if spec.op == "gemv" else 3))
    most = profile.paths[0]
    if most.count * len(most.lines) > 0.9 * profile.instructions and spec.op == "gemv" and spec.layout.format != "tl2":
        assert products % most.count == 0
        assert products / most.count % spec.layout.bm == 0


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log of a build tells where functions lie in programs without names; ziglang makes libc anew for one with."""
    for key, platform in targets.PLATFORMS.items():
        if platform.system.name == "musl":
            kept = replace(platform, system=replace(platform.system, program=(*platform.system.program, PRINT_MAP)))
            monkeypatch.setitem(targets.PLATFORMS, key, kept)


PRINT_MAP = "-Wl,--print-map"
PLACE = re.compile(r"^ *([0-9a-f]+) +[0-9a-f]+ +([0-9a-f]+) +1 {9,}(\w+)$", re.M)  # address, size and name


def executed(spec: KernelSpec, n: int, folder: Path) -> int:
    """Instructions of one call under qemu, outside `pack_activations` and libc."""
    arch = {"arm64": "aarch64"}.get(targets.target(spec.isa).arch, "x86_64")
    qemu = shutil.which(f"qemu-{arch}-static") or shutil.which(f"qemu-{arch}")
    if qemu is None:
        pytest.skip(f"no qemu-{arch} here (apt-get install qemu-user-static)")
    codes, q = np.zeros((spec.shape.m, spec.shape.k), np.int8), np.zeros((n, spec.shape.k), np.int8)
    job = kernel_lab.Job(spec, codes, (kernel_lab.Run(q),))
    program = kernel_lab.program.__wrapped__(spec.isa, (spec,))
    log = folder / "executed"
    command = [qemu, "-cpu", "max", "-singlestep", "-d", "exec,nochain", "-D", log, program, "run"]
    done = subprocess.run(command, input=b"".join(kernel_lab._words([job], [spec])), capture_output=True)
    if done.returncode:
        pytest.skip(f"this qemu does not execute {spec.isa}: {done.stderr.decode()}")
    lines = [line for line in log.read_text().splitlines() if line.startswith("Trace")]
    own = parsed(spec).labels.keys() - {"pack_activations"}
    places = PLACE.findall((program.parent / "build.log").read_text())
    if not places:
        return sum(line.split()[-1] in own for line in lines)
    ours = [range(int(at, 16), int(at, 16) + int(size, 16)) for at, size, name in places if name in own]
    return sum(any(int(line.split("/")[1], 16) in each for each in ours) for line in lines)


@pytest.mark.parametrize(
    ("symbol", "n"),
    [
        ("bg_i2_s_gemv_m64_k640_bm4_bk64_pf2048__dotprod", 1),
        ("bg_tl1_gemv_m64_k640_bm64_bk128__neon", 1),
        ("bg_t5_gemm_m40_k640_bm5_bk64_nr2__neon", 7),
        ("bg_i2_s_gemm_m40_k640_bm4_bk64_nr4_g8__neon", 35),
        ("bg_i2_s_gemm_m40_k640_bm4_bk64_nr12__dotprod", 35),
        ("bg_i2_s_gemm_m40_k640_bm4_bk64_nr12__i8mm", 35),
        ("bg_i2_s_gemv_m64_k640_bm4_bk128_pf2048__avx2", 1),
        ("bg_tl2_gemm_m64_k640_bm64_bk192__avx2", 3),
        ("bg_i2_s_gemm_m40_k640_bm4_bk128_nr8__avx2", 11),
        ("bg_t5_gemm_m40_k640_bm5_bk128_nr2_g8__avx2", 35),
    ],
)
def test_counts_are_those_of_execution(symbol: str, n: int, placed: None, tmp_path: Path) -> None:
    """To the instruction on ARM. x86 loops begin on round addresses, and what fills the gap before them is executed."""
    spec = KernelSpec.parse(symbol)
    assert spec is not None
    truth = executed(spec, n, tmp_path)
    panels = FORMATS[spec.layout.format].geometry(spec.shape, spec.layout).panels
    counted = followed(spec, n, panels).instructions
    padding = 0 if targets.target(spec.isa).arch == "arm64" else 0.01
    assert counted <= truth <= counted * (1 + padding)
