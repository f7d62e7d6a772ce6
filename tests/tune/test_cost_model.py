"""The cost model: extrapolation beside whole calls, llvm-mca's answers, the plan, and what is said without them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from bitgen import api, targets
from bitgen.checkpoints import presets
from bitgen.cli import main
from bitgen.errors import BitgenError, UnsupportedError
from bitgen.kernels import plan
from bitgen.kernels.evidence import Effort
from bitgen.kernels.formats import FORMATS
from bitgen.spec import GemmShape, KernelSpec, Layout
from bitgen.tune import cost_model, trace
from bitgen.tune.cost_model import Core

SHAPE = GemmShape(96, 256)

needs_llvm_mca = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("llvm-mca", *(f"llvm-mca-{n}" for n in range(13, 40)))),
    reason="no llvm-mca here (apt-get install llvm)",
)


def kernel(symbol: str) -> KernelSpec:
    spec = KernelSpec.parse(symbol)
    assert spec is not None
    return spec


@pytest.mark.parametrize(
    "symbol",
    [
        "bg_i2_s_gemv_m256_k256_bm4_bk64_pf2048__dotprod",
        "bg_i2_s_gemm_m256_k256_bm4_bk64_nr12__dotprod",
        "bg_i2_s_gemm_m256_k256_bm4_bk64_nr12__i8mm",
        "bg_i2_s_gemm_m256_k256_bm4_bk64_nr4__neon",
        "bg_i2_s_gemm_m256_k256_bm4_bk64_nr4_g8__neon",
        "bg_tl1_gemm_m256_k256_bm64_bk128__neon",
        "bg_i2_s_gemm_m1284_k128_bm4_bk128_nr8_g8__avx2",
    ],
)
def test_a_whole_call_is_on_the_line_through_small_ones(symbol: str) -> None:
    spec = kernel(symbol)
    arch = targets.target(spec.isa).arch
    program = cost_model.kernel_program(spec, arch)
    panels = FORMATS[spec.layout.format].geometry(spec.shape, spec.layout).panels
    truth = trace.follow(program, cost_model.tokens(spec), panels).instructions
    assert cost_model.call_profile(spec, arch).instructions == pytest.approx(truth, rel=0.005)


@pytest.mark.parametrize(
    ("symbol", "rows"),
    [
        ("bg_i2_s_gemm_m4096_k256_bm4_bk128_nr8_g8__avx2", 2560),
        ("bg_i2_s_gemm_m4096_k2560_bm4_bk128_nr8__avx2", (128 << 10) // (2560 // 4)),
        ("bg_i2_s_gemv_m4096_k256_bm4_bk128__avx2", 4096),
    ],
)
def test_rows_taken_at_a_time(symbol: str, rows: int) -> None:
    spec = kernel(symbol)
    assert cost_model.panels_per_block(spec) == rows // spec.layout.bm


@pytest.mark.parametrize(
    ("arch", "cpu", "isa"),
    [
        ("arm64", "cortex-a53", "neon"),
        ("arm64", "cortex-a76", "dotprod"),
        ("x86_64", "znver3", "avx2"),
        ("x86_64", "icelake-server", "avx512vbmi"),
        ("x86_64", "x86-64", "scalar"),
    ],
)
def test_level_of_a_cpu(arch: str, cpu: str, isa: str) -> None:
    assert cost_model.level(arch, cpu) == isa


def test_level_of_an_unknown_cpu() -> None:
    with pytest.raises(UnsupportedError, match=r"does not know the CPU 'abacus'.*--isa"):
        cost_model.level("arm64", "abacus")


@needs_llvm_mca
def test_loops_are_simulated_and_the_rest_is_throughput() -> None:
    """A chain of four-cycle multiplications takes four cycles each when it loops, one each when it runs once."""
    core = Core.find("x86_64", "znver3")
    chain = trace.Path("chain", ("mulsd %xmm1, %xmm0",) * 4, 1, loops=False)
    once, again, call = core.cycles(
        [
            chain,
            trace.Path("loop", chain.lines, 1, loops=True),
            trace.Path("call", ("callq memset@PLT",), 1, loops=False),
        ]
    )
    assert once <= 4
    assert 11 <= again <= 16
    assert call == 0


@needs_llvm_mca
def test_an_estimate_counts_and_explains(capsys: pytest.CaptureFixture[str]) -> None:
    symbol = "bg_i2_s_gemv_m256_k2560_bm4_bk64_pf2048__dotprod"
    found = api.kernel_cost(symbol, "cortex-a76")
    assert found.products == 256 * 2560
    assert found.loop_products == 256  # one block of 64 columns of four rows
    assert 0.1 < found.instructions / found.products < 0.3
    assert 0.02 < found.cycles / found.products < 0.3
    out = CliRunner().invoke(main, ["gen", symbol, "--mca", "cortex-a76"])
    assert out.exit_code == 0
    assert "estimated by llvm-mca of LLVM" in out.output
    assert "a call for 1 token(s)" in out.output


@needs_llvm_mca
def test_a_cpu_without_the_instructions() -> None:
    with pytest.raises(UnsupportedError, match=r"cannot model this code on cortex-a53: .*requires"):
        api.kernel_cost("bg_i2_s_gemv_m64_k64_bm4_bk64__dotprod", "cortex-a53")


@needs_llvm_mca
def test_an_unknown_cpu_lists_the_known() -> None:
    with pytest.raises(UnsupportedError, match=r"does not know the arm64 CPU 'abacus'; it knows: .*cortex-a76"):
        Core.find("arm64", "abacus")


def test_without_llvm_mca_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cost_model._llvm_mca.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BitgenError, match="apt-get install llvm"):
        Core.find("arm64", "cortex-a76")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the candidates, the first layout of each format and no look-ups of sums: those take a second each."""
    every = cost_model.candidates

    def some(shape: GemmShape, isa: str, effort: Effort) -> list[KernelSpec]:
        specs = [spec for spec in every(shape, isa, effort) if not spec.tile.lut_groups]
        first: dict[str, Layout] = {}
        return [spec for spec in specs if first.setdefault(spec.layout.format, spec.layout) == spec.layout]

    monkeypatch.setattr(cost_model, "candidates", some)


@needs_llvm_mca
def test_the_plan_is_an_estimate_and_always_the_same(few: None) -> None:
    core = Core.find("arm64", "cortex-a53")
    made = cost_model.estimate_plan([SHAPE], "neon", core)
    assert "estimated by llvm-mca of LLVM" in made.basis
    assert "cortex-a53 (scheduling model A53)" in made.basis
    assert made.decisions[SHAPE].is_current(SHAPE, "neon")
    cost_model.call_profile.cache_clear()
    assert cost_model.estimate_plan([SHAPE], "neon", core) == made
    evidence = made.decisions[SHAPE].evidence
    chosen, _ = made.decisions[SHAPE].plan.specs(SHAPE, "neon")
    assert evidence.gemv.tried[chosen.symbol] == evidence.gemv.cycles
    assert not evidence.failed


@needs_llvm_mca
def test_scarce_bandwidth_chooses_the_smallest_format(few: None) -> None:
    core = Core.find("arm64", "cortex-a53")
    shape = GemmShape(320, 640)
    scarce = cost_model.estimate_plan([shape], "neon", core, bytes_per_cycle=0.02).decisions[shape]
    assert scarce.plan.layout.format == "t5"
    assert scarce.evidence.gemv.cycles == 320 * 640 / 5 / 0.02
    assert cost_model.estimate_plan([shape], "neon", core).decisions[shape].plan.layout.format != "t5"


def test_candidates_differ_in_what_the_model_sees() -> None:
    specs = cost_model.candidates(SHAPE, "avx2", "thorough")
    assert {s.tile.prefetch for s in specs if s.op == "gemv"} <= {2048, 0}
    assert len({(s.op, s.layout, s.tile.nr, bool(s.tile.lut_groups)) for s in specs}) == len(specs)


@needs_llvm_mca
def test_tune_by_estimate(few: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command writes a plan that a build could use, for every matrix of the model."""
    monkeypatch.setattr(api, "shape_of", lambda name: small)
    small = presets.load("stories")
    monkeypatch.setattr(type(small), "matrices", property(lambda self: {"qkv": SHAPE, "o": SHAPE}))
    file = tmp_path / "plan.json"
    arguments = ["--arch", "arm64", "--cost-model", "llvm-mca", "--cpu", "neoverse-n1", "-o", str(file)]
    out = CliRunner().invoke(main, ["tune", "--model", "stories", *arguments])
    assert out.exit_code == 0, out.output
    made = plan.load(file)
    assert made is not None
    assert (made.isa, made.cpu) == ("dotprod", "neoverse-n1")
    assert list(made.decisions) == [SHAPE]
    assert "estimated by llvm-mca" in json.loads(file.read_text())["basis"]


@pytest.mark.parametrize("arguments", [["--cpu", "znver3"], ["--cost-model", "llvm-mca"], ["--bytes-per-cycle", "2"]])
def test_options_that_go_together(arguments: list[str]) -> None:
    out = CliRunner().invoke(main, ["tune", "--model", "stories", *arguments])
    assert out.exit_code == 2
    assert "goes with --cost-model" in out.output or "--cost-model needs --cpu" in out.output
