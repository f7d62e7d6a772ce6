"""Tables for the terminal: what was tuned, estimated, measured and verified; and lines of log probabilities."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from rich import box
from rich.console import RenderableType
from rich.table import Table

from bitgen.cli.console import printable
from bitgen.engine.score import TokenChoice
from bitgen.kernels.evidence import Cost, Decode, Prefill
from bitgen.measure.report import BenchReport, Energy, PeerRow, Profile, Rate, Step
from bitgen.measure.verify import Receipt
from bitgen.spec import GemmShape
from bitgen.text.tokenizer import Tokenizer
from bitgen.tune.report import TuneReport

BAR = 20
"""Characters of a bar that stands for all of the time."""


def _table(title: str, columns: Sequence[str], left: Collection[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table of numbers, flush right, except in the columns named in `left`."""
    table = Table(title=printable(title), title_justify="left", box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(printable, row))
    return table


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


# ---- tune ---------------------------------------------------------------------------------------------------

KERNEL = ("matrix", "shape", "phase", "kernel")
KERNEL_WORDS = ("matrix", "phase", "kernel")


def tuned(report: TuneReport) -> Table:
    """A row for each matrix and phase: its kernel, as measured."""
    title = f"{report.model.name} on {report.isa}, {report.threads} threads; {report.cpu}"
    rows = ((*kernel, *_measured(e)) for kernel, _, e in _kernels(report) if not isinstance(e, Cost))
    return _table(title, (*KERNEL, "time", "rate", "share", "vs default"), KERNEL_WORDS, rows)


def estimated(report: TuneReport) -> Table:
    """A row for each matrix and phase: its kernel, by the cost model."""
    title = f"{report.model.name} on {report.isa}, {report.plan.basis}"
    columns = (*KERNEL, "cycles/token", "/weight", "instr./weight", "vs default")
    rows = ((*kernel, *_costs(e, shape)) for kernel, shape, e in _kernels(report) if isinstance(e, Cost))
    return _table(title, columns, KERNEL_WORDS, rows)


def _kernels(report: TuneReport) -> Iterator[tuple[tuple[str, ...], GemmShape, Decode | Prefill | Cost]]:
    """The columns KERNEL, the matrix and the kernel's evidence, for each matrix and phase."""
    for role, gemm in report.model.matrices.items():
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


# ---- bench --------------------------------------------------------------------------------------------------


def rates(report: BenchReport) -> Table:
    """A row for each case: tokens per second, and shares of what the machine can do."""
    model = report.model
    title = f"{model.name} on {model.isa}, {model.head} head, {model.cache} cache; {report.host.cpu}"
    columns = ("test", "threads", "tok/s", "min - max", "MB/token", "GB/s", "of bandwidth", "of peak ops")
    return _table(title, columns, ("test",), map(_rate, report.results))


def _rate(rate: Rate) -> tuple[str, ...]:
    case = rate.case
    context = f" at {case.context}" if case.context else ""
    batch = f" x {case.batch}" if case.batch > 1 else ""
    return (
        f"{case.kind} {case.tokens}{context}{batch}",
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
        yield f"{threads} thread(s): reads {machine.bytes_s / 1e9:.1f} GB/s, peak {machine.ops_s / 1e9:.0f} GOP/s"
    if report.host.load_before > 0.5:
        yield f"the machine was busy before this began (load {report.host.load_before:.1f}): expect noise"


def extras(report: BenchReport) -> Iterator[RenderableType]:
    """A table for every optional part of a report, and a sentence for what could not be measured."""
    yield from map(_profile, report.profile or ())
    if report.peers is not None:
        yield _peers(report.peers, report.model.activation)
    if report.energy is not None:
        yield _energy(report.energy)


def _profile(profile: Profile) -> Table:
    title = f"where the time of {profile.case.title} on {profile.case.threads} thread(s) goes"
    columns = ("step", "share", "ms/token", "calls", "GB/s", "of bandwidth", "GOP/s", "of peak ops", "")
    return _table(title, columns, ("step", ""), map(_step, profile.steps))


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


def _peers(rows: Sequence[PeerRow], activation: str) -> Table:
    columns = ("test", "threads", "tok/s", "min - max", "bitgen tok/s", "bitgen is", "engine")
    texts = (_peer(row, activation) for row in rows)
    return _table("beside other engines, in alternation", columns, ("test", "engine"), texts)


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
    return _table(f"energy of {', '.join(energy.zones)}", ("test", "threads", "J/token", "W"), ("test",), rows)


# ---- run, verify --------------------------------------------------------------------------------------------


def logprobs(tokenizer: Tokenizer, choices: Iterable[TokenChoice]) -> Iterator[str]:
    """A line for each generated token: its text and log probability, then the likeliest ones."""
    for choice in choices:
        likeliest = "  ".join(f"{tokenizer.decode([id])!r} {p:.3f}" for id, p in choice.likeliest)
        yield f"{tokenizer.decode([choice.token])!r:>16} {choice.logprob:8.3f}  |  {likeliest}".rstrip(" |")


def receipt(found: Receipt) -> Table:
    """A row for each group of checks that held, and one for every check that did not."""
    title = f"{found.model['name']}, {found.model['sha256'][:16]}, on {', '.join(found.levels['plans'])}"
    columns = ("", "checks", "verdict", "seconds", "what was found")
    table = _table(title, columns, ("", "verdict", "what was found"), _verdicts(found))
    table.caption, table.caption_justify = f"{'pass' if found.ok else 'FAIL'}: {len(found.checks)} checks", "left"
    return table


def _verdicts(found: Receipt) -> Iterator[tuple[str, ...]]:
    for group in dict.fromkeys(check.group for check in found.checks):
        checks = [check for check in found.checks if check.group == group]
        bad = [check for check in checks if not check.ok]
        seconds = f"{sum(check.seconds for check in checks):.1f}"
        details = "; ".join(dict.fromkeys(check.detail for check in checks if check.ok))
        yield group, str(len(checks)), "FAIL" if bad else "pass", seconds, details
        for check in bad:
            yield "", "", "FAIL", "", f"{check.subject}: {check.detail}"
