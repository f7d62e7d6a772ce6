"""Tables for the terminal: what was tuned, estimated, measured and verified; and lines of log probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.console import RenderableType

from bitgen.cli.grid import Column, Grid
from bitgen.engine.score import TokenChoice
from bitgen.kernels.evidence import Cost, Decode, Prefill
from bitgen.kernels.plan import cpu_title
from bitgen.measure.receipt import Receipt
from bitgen.measure.report import BenchReport, Energy, PeerRow, Profile, Rate, Step
from bitgen.measure.rungs import READING, LadderReport, RungRate
from bitgen.spec import GemmShape
from bitgen.text.tokenizer import Tokenizer
from bitgen.tune import cost_model
from bitgen.tune.cost_model import Estimate
from bitgen.tune.report import TuneReport

BAR = 20
"""Characters of a bar that stands for all of the time."""


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


# ---- tune ---------------------------------------------------------------------------------------------------

KERNEL = (
    Column("matrix", words=True),
    Column("shape", spare=3),
    Column("phase", words=True),
    Column("kernel", spare=2, words=True),
)
MEASURED = (Column("time", spare=4), Column("rate"), Column("of limit"), Column("vs default", spare=1))
ESTIMATED = (
    Column("cycles/token"),
    Column("cycles/weight", spare=5),
    Column("instructions/weight", spare=4),
    Column("vs default", spare=1),
)


def tuned(report: TuneReport) -> Grid:
    """A row for each matrix and phase: its kernel, as measured."""
    title = f"{report.model.name} on {report.isa}, {_threads(report.threads or 0)}; {cpu_title(report.cpu)}"
    rows = ((*kernel, *_measured(e)) for kernel, _, e in _kernels(report) if not isinstance(e, Cost))
    return Grid(title, (*KERNEL, *MEASURED), rows)


def estimated(report: TuneReport) -> Grid:
    """A row for each matrix and phase: its kernel, by the cost model."""
    title = f"{report.model.name} on {report.isa}, {report.plan.basis}"
    rows = ((*kernel, *_costs(e, shape)) for kernel, shape, e in _kernels(report) if isinstance(e, Cost))
    return Grid(title, (*KERNEL, *ESTIMATED), rows)


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count != 1)}"


def _kernels(report: TuneReport) -> Iterator[tuple[tuple[str, ...], GemmShape, Decode | Prefill | Cost]]:
    """The columns KERNEL, the matrix and the kernel's evidence, for each matrix and phase."""
    for role, gemm in report.model.all_matrices.items():
        decision = report.plan.decisions[gemm]
        assert decision.evidence is not None  # it was just made
        evidence = decision.evidence.gemv, decision.evidence.gemm
        specs = decision.plan.specs(gemm, report.isa)
        for phase, spec, found in zip(("decode", "prefill"), specs, evidence, strict=True):
            tile = spec.symbol.split(f"_k{spec.shape.k}_")[1].split("__")[0].replace("_", " ")
            kernel = (role, f"{gemm.m}x{gemm.k}", phase, f"{spec.layout.format} {tile}")
            yield kernel, gemm, found


def _measured(e: Decode | Prefill) -> tuple[str, ...]:
    if isinstance(e, Decode):
        rate, share = f"{e.gb_s:.1f} GB/s", e.bandwidth_share
    else:
        rate, share = f"{e.gop_s:.0f} GOP/s", e.peak_share
    return f"{e.seconds * 1e6:.0f} us", rate, f"{share:.0%}", f"{e.default_seconds / e.seconds:.2f}x"


def _costs(e: Cost, shape: GemmShape) -> tuple[str, ...]:
    per_weight = f"{e.cycles / (shape.m * shape.k):.4f}", f"{e.instructions_per_weight:.4f}"
    gain = f"{e.default_cycles / e.cycles:.2f}x" if e.default_cycles else ""
    return f"{e.cycles:,.0f}", *per_weight, gain


def cost(found: Estimate) -> Grid:
    """A row for a pass of the hottest loop, and one for a call of the kernel."""
    rows = (
        (f"a pass of {found.loop.label}", len(found.loop.lines), found.loop_cycles, found.loop_products),
        (f"a call for {cost_model.tokens(found.spec)} token(s)", found.instructions, found.cycles, found.products),
    )
    columns = ("instructions", "cycles", "weights", "instructions/weight", "cycles/weight")
    head = [
        Column("", words=True),
        *(Column(name, spare) for name, spare in zip(columns, (0, 0, 1, 3, 2), strict=True)),
    ]
    share = f"{found.loop.label} runs {found.loop_share:.0%} of the instructions"
    return Grid(f"{found.spec.symbol}\n{found.core.basis}\n{share}", head, (_cost_row(*row) for row in rows))


def _cost_row(what: str, instructions: float, cycles: float, weights: float | None) -> tuple[str, ...]:
    each = (f"{weights:,.0f}", f"{instructions / weights:.4f}", f"{cycles / weights:.4f}") if weights else ("", "", "")
    return what, f"{instructions:,.0f}", f"{cycles:,.1f}", *each


# ---- bench --------------------------------------------------------------------------------------------------


RATES = (
    Column("test", words=True),
    Column("threads"),
    Column("tok/s"),
    Column("min - max", spare=2),
    Column("MB/token", spare=4),
    Column("GB/s", spare=3),
    Column("of bandwidth", spare=1),
    Column("of peak ops", spare=1),
)


def rates(report: BenchReport) -> Grid:
    """A row for each case: tokens per second, and shares of what the machine can do."""
    model = report.model
    title = f"{model.name} on {model.isa}, {model.head} head, {model.cache} cache; {report.host.cpu}"
    return Grid(title, RATES, map(_rate, report.results))


def _rate(rate: Rate) -> tuple[str, ...]:
    case = rate.case
    return (
        case.title,
        str(case.threads),
        f"{rate.tok_s:.1f}",
        f"{rate.tok_s_min:.1f} - {rate.tok_s_max:.1f}",
        f"{rate.bytes_per_token / 1e6:.1f}",
        f"{rate.gb_s:.1f}",
        f"{rate.bandwidth_share:.0%}",
        f"{rate.ops_share:.0%}",
    )


def limits(report: BenchReport) -> Iterator[str]:
    """A sentence for each number of threads: the machine's limits; and one if it had other work."""
    for threads, machine in report.host.limits.items():
        yield f"{_threads(threads)}: reads {machine.bytes_s / 1e9:.1f} GB/s, peak {machine.ops_s / 1e9:.0f} GOP/s"
    if report.host.load_before > 0.5:
        yield f"the machine was busy before this began (load {report.host.load_before:.1f}): expect noise"


def extras(report: BenchReport) -> Iterator[RenderableType]:
    """A table for every optional part of a report, and a sentence for what could not be measured."""
    yield from map(_profile, report.profile or ())
    if report.peers is not None:
        yield _peers(report.peers, report.model.activation)
    if report.energy is not None:
        yield _energy(report.energy)


PROFILE = (
    Column("step", words=True),
    Column("share"),
    Column("ms/token"),
    Column("calls", spare=4),
    Column("GB/s", spare=2),
    Column("of bandwidth", spare=1),
    Column("GOP/s", spare=3),
    Column("of peak ops", spare=1),
    Column("bar", spare=5, words=True),
)


def _profile(profile: Profile) -> Grid:
    title = f"where the time of {profile.case.title} on {_threads(profile.case.threads)} goes"
    return Grid(title, PROFILE, map(_step, profile.steps))


def _step(step: Step) -> tuple[str, ...]:
    return (
        step.step.replace("_", " "),
        f"{step.share:.1%}",
        f"{step.ms_per_token:.3f}",
        f"{step.calls:.0f}",
        _number(step.gb_s, "{:.1f}"),
        _number(step.bandwidth_share, "{:.0%}"),
        _number(step.gop_s, "{:.0f}"),
        _number(step.ops_share, "{:.0%}"),
        "█" * round(step.share * BAR),
    )


PEERS = (
    Column("test", words=True),
    Column("threads", spare=1),
    Column("tok/s"),
    Column("min - max", spare=3),
    Column("bitgen tok/s", spare=2),
    Column("bitgen is"),
    Column("engine", words=True),
)


def _peers(rows: Sequence[PeerRow], activation: str) -> Grid:
    return Grid("beside other engines, in alternation", PEERS, (_peer(row, activation) for row in rows))


def _peer(row: PeerRow, activation: str) -> tuple[str, ...]:
    race, numbers = row.race, ("", "", "", "")
    if race is not None:
        spread = f"{race.tok_s_min:.1f} - {race.tok_s_max:.1f}"
        numbers = (f"{race.tok_s:.1f}", spread, f"{race.bitgen_tok_s:.1f}", f"{race.ratio:.2f} x")
    other = "" if row.activation == activation else f", {row.activation} for {activation}"
    error = f": {row.error}" if row.error else ""
    return row.case.title, str(row.case.threads), *numbers, f"{row.about}{other}{error}"


def _energy(energy: Energy) -> RenderableType:
    if energy.reason:
        return f"no energy: {energy.reason}"
    rows = (
        (row.case.title, str(row.case.threads), f"{row.joules_per_token:.3f}", f"{row.watts:.1f}")
        for row in energy.results
    )
    columns = (Column("test", words=True), Column("threads"), Column("J/token"), Column("W"))
    return Grid(f"energy of {', '.join(energy.zones)}", columns, rows)


# ---- ladder ---------------------------------------------------------------------------------------------------

RUNGS = (
    Column("size", words=True),
    Column("weights", spare=5),
    Column("test", spare=1, words=True),
    Column("threads", spare=2),
    Column("tok/s"),
    Column("min - max", spare=4),
    Column("MB/token", spare=3),
    Column("GB/s", spare=6),
    Column("of bandwidth"),
    Column("bits/weight", spare=7),
    Column("J/token"),
)


def ladder(report: LadderReport) -> Grid:
    """A row for each rung and case, the smallest rung first."""
    counted = any(rate.joules_per_token is not None for rate in report.rates)
    columns = RUNGS if counted else RUNGS[:-1]
    about = f"people read {READING[0]:.0f} to {READING[1]:.0f} tokens a second"
    kinds = dict.fromkeys((rate.isa, rate.head, rate.cache, rate.cpu) for rate in report.rates)
    title = "; ".join(f"on {isa}, {head} head, {cache} cache; {cpu}" for isa, head, cache, cpu in kinds)
    return Grid(f"the ladder {title}".strip(), columns, (_rung(rate)[: len(columns)] for rate in report.rates), about)


def _rung(rate: RungRate) -> tuple[str, ...]:
    return (
        rate.size,
        f"{rate.parameters / 1e9:.2f}e9",
        f"{rate.kind} {rate.tokens}",
        str(rate.threads),
        f"{rate.tok_s:.2f}" if rate.tok_s < 10 else f"{rate.tok_s:.1f}",
        f"{rate.tok_s_min:.2f} - {rate.tok_s_max:.2f}",
        f"{rate.bytes_per_token / 1e6:,.0f}",
        f"{rate.bytes_per_token * rate.tok_s / 1e9:.1f}",
        f"{rate.bandwidth_share:.0%}",
        f"{rate.bits:.2f}",
        _number(rate.joules_per_token, "{:.2f}"),
    )


# ---- run, verify --------------------------------------------------------------------------------------------


def logprobs(tokenizer: Tokenizer, choices: Iterable[TokenChoice]) -> Iterator[str]:
    """A line for each generated token: its text and log probability, then the likeliest ones."""
    for choice in choices:
        likeliest = "  ".join(f"{tokenizer.decode([id])!r} {p:.3f}" for id, p in choice.likeliest)
        yield f"{tokenizer.decode([choice.token])!r:>16} {choice.logprob:8.3f}  |  {likeliest}".rstrip(" |")


VERDICTS = (
    Column("checks of", words=True),
    Column("number"),
    Column("verdict", words=True),
    Column("seconds", spare=1),
    Column("what was found", words=True),
)


def receipt(found: Receipt) -> Grid:
    """A row for each group of checks that held, and one for every check that did not."""
    title = f"{found.model['name']}, {found.model['sha256'][:16]}, on {', '.join(found.levels['plans'])}"
    return Grid(title, VERDICTS, _verdicts(found), f"{'pass' if found.ok else 'FAIL'}: {len(found.checks)} checks")


def _verdicts(found: Receipt) -> Iterator[tuple[str, ...]]:
    for group in dict.fromkeys(check.group for check in found.checks):
        checks = [check for check in found.checks if check.group == group]
        bad = [check for check in checks if not check.ok]
        seconds = f"{sum(check.seconds for check in checks):.1f}"
        details = "; ".join(dict.fromkeys(check.detail for check in checks if check.ok))
        yield group, str(len(checks)), "FAIL" if bad else "pass", seconds, details
        for check in bad:
            yield "", "", "FAIL", "", f"{check.subject}: {check.detail}"
