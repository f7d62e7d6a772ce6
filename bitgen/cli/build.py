"""Commands that choose, compile and show kernels: tune, build, gen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bitgen import api
from bitgen.cli import tables
from bitgen.cli.console import OUT, progress_bar, say, say_json, warn
from bitgen.cli.located import located
from bitgen.cli.options import (
    READING,
    THREADS,
    finite,
    given,
    head_option,
    isa_option,
    json_option,
    quiet_option,
    reading_options,
    refuse,
    warn_crowded,
)
from bitgen.data import SHIPPED
from bitgen.targets import ARCHES, SYSTEMS, TARGETS
from bitgen.tune.report import TuneReport


@click.command()
@click.option("-m", "--model", required=True, metavar="MODEL", help="A preset, a GGUF file, or a model that is here.")
@click.option("-t", "--threads", type=THREADS,
              help="The most threads to measure with. [default: all CPUs of this process or device]")  # fmt: skip
@click.option("--quick/--thorough", "quick", default=True, show_default=True,
              help="Try the likely kernels, or many times more.")  # fmt: skip
@isa_option
@click.option("--reset", is_flag=True, help="Forget what was decided before for this model's matrices, then tune.")
@click.option("--remote", metavar="[USER@]HOST[:PORT]", help="Measure on this Linux device over SSH, not here.")
@click.option("--ssh", metavar="COMMAND", help="With --remote: how to connect, like 'ssh -i KEY'. "
              "[default: what BITGEN_SSH holds, else ssh]")  # fmt: skip
@click.option("--cost-model", type=click.Choice(["llvm-mca"]),
              help="Measure nothing: estimate for the CPU that --cpu names, by LLVM's model of its core.")  # fmt: skip
@click.option("--cpu", metavar="NAME", help="With --cost-model: the CPU as LLVM calls it: cortex-a76, neoverse-n1, "
              "apple-m1, znver3, ...")  # fmt: skip
@click.option("--bytes-per-cycle", metavar="BYTES", type=click.FloatRange(min=0, min_open=True), callback=finite,
              help="With --cost-model: what memory gives one core in a clock cycle while all cores read, which is "
              "GB/s / cores / GHz. [default: memory is never waited for]")  # fmt: skip
@click.option("--arch", type=click.Choice(list(ARCHES)), help="With --remote or --cost-model: the architecture. "
              "[default: the one that the device reports; for --cost-model this machine's]")  # fmt: skip
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path),
              help="Write the plan to this file, for `build --plan`. [default: into the cache, where `run` "
              "finds it]")  # fmt: skip
@json_option
@quiet_option
def tune(model: str, threads: int | None, quick: bool, isa: str | None, reset: bool, remote: str | None,
         ssh: str | None, cost_model: str | None, cpu: str | None, bytes_per_cycle: float | None, arch: str | None,
         output: Path | None, as_json: bool) -> None:  # fmt: skip
    """Find the fastest kernels for a model's matrices: on this CPU, on a device behind SSH, or by estimate."""
    estimated = cost_model is not None
    refuse(
        (ssh is not None and remote is None, "--ssh says how --remote connects: give --remote too"),
        (remote is not None and estimated, "--remote measures and --cost-model estimates: give one of them"),
        (estimated and cpu is None, "--cost-model needs --cpu, the name of the CPU to estimate for"),
        (cpu is not None and not estimated, "--cpu goes with --cost-model llvm-mca"),
        (bytes_per_cycle is not None and not estimated, "--bytes-per-cycle goes with --cost-model"),
        (arch is not None and remote is None and not estimated,
         "--arch goes with --remote or --cost-model: this machine's architecture is known"),
        (threads is not None and estimated, "--threads is for measuring: --cost-model estimates for one core"),
        (reset and estimated, "--reset is for measuring: --cost-model keeps nothing from before"),
        (arch is not None and isa in TARGETS and TARGETS[str(isa)].arch not in (arch, "any"),
         f"--isa {isa} is not of --arch {arch}"),
    )  # fmt: skip
    common: dict[str, Any] = {
        "arch": arch, "isa": isa, "effort": "quick" if quick else "thorough", "output": output,
    }  # fmt: skip
    with progress_bar() as listen:
        if cpu is not None:
            report = api.estimate(model, cpu=cpu, bytes_per_cycle=bytes_per_cycle, progress=listen, **common)
        else:
            warn_crowded([threads] if threads and remote is None else [])
            how: dict[str, Any] = {"threads": threads, "reset": reset, "remote": remote, "ssh": ssh}
            report = api.tune(model, progress=listen, **how, **common)
    if as_json:
        say_json(report.to_json())
    else:
        _show_plan(report)


def _show_plan(report: TuneReport) -> None:
    """Print what was measured or estimated, and where the plan is."""
    if report.forgotten:
        say(f"forgotten: what was decided before for {', '.join(report.forgotten)}")
    OUT.print(tables.estimated(report) if report.threads is None else tables.tuned(report))
    if report.disturbed:
        say(
            f"the machine had other work while {', '.join(report.disturbed)} ran: expect noise; "
            "the same command measures that again"
        )
    say(f"plan: {report.path}")
    if report.build:
        say(f"next: {report.build}")


@click.command()
@click.option("-m", "--model", metavar="MODEL", default=SHIPPED, show_default=True,
              help="A GGUF file, a preset, or hf:owner/repo[:TAG].")  # fmt: skip
@click.option("--arch", type=click.Choice(["native", *ARCHES]), default="native", show_default=True,
              help="The architecture to build for.")  # fmt: skip
@click.option(
    "--os",
    "system",
    type=click.Choice(list(SYSTEMS)),
    help="The system to build for: linux has glibc, as most distributions do; musl is for Alpine and the like. "
    "[default: this machine's; linux for another architecture]",
)
@click.option(
    "--isa",
    metavar="LEVEL",
    help="Only this instruction-set level. With --standalone: the level whose layout of weights all levels of the "
    "program share. [default: all levels of the architecture; for the layout the lowest one with vectors]",
)
@click.option("--plan", "plans", multiple=True, type=click.Path(path_type=Path),
              help="A plan that `tune -o` wrote; repeatable, for several levels.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), default=Path("build"),
              show_default=True, help="The folder to write to.")  # fmt: skip
@click.option("--standalone", is_flag=True,
              help="Write a program that needs no Python and its weights, not a library.")  # fmt: skip
@click.option("--one-file", is_flag=True, help="With --standalone: program and weights in one file.")
@click.option("-y", "--yes", is_flag=True, help="With --standalone: download the model without asking.")
@head_option
@json_option
@quiet_option
@reading_options
def build(model: str, yes: bool, arch: str, system: str | None, isa: str | None, plans: tuple[Path, ...], output: Path,
          standalone: bool, one_file: bool, head: Any, as_json: bool, **reading: Any) -> None:  # fmt: skip
    """Generate and compile a model's library: sources, spec and libbitgen.so in a folder of their own.

    For macOS it is libbitgen.dylib, for Windows bitgen.dll. With --standalone: a program that continues prompts, and
    its packed weights.
    """
    weights = given("one_file", "head", "yes", *READING)
    refuse(
        (not standalone and bool(weights), f"{', '.join(weights)}: only with --standalone; a library has no weights")
    )
    if standalone:
        model = located(model, yes) or model
    where: dict[str, Any] = {"arch": arch, "system": system, "isa": isa, "plans": plans}
    with progress_bar() as listen:
        if standalone:
            made = api.standalone(
                model, **where, folder=output, one_file=one_file, head=head, progress=listen, **reading
            )
        else:
            artefact = api.build(model, **where, root=output, progress=listen)
    if standalone:
        warn(made.warning)
    if as_json:
        say_json((made if standalone else artefact).to_json())
    elif standalone:
        say("\n".join(map(str, made.files)))
        say(made.about, err=True)
    else:
        say(artefact.path)


@click.command()
@click.argument("symbol", required=False)
@click.option("-m", "--model", metavar="MODEL", help="List the kernels of a preset or of a model that is here.")
@click.option("--isa", metavar="LEVEL", help="With --model: at this level. [default: the best this CPU executes]")
@click.option("--asm", is_flag=True, help="Print the compiler's assembly, not the C.")
@click.option(
    "--mca", metavar="CPU", help="Estimate its instructions and cycles on a CPU that LLVM knows, by llvm-mca."
)
@click.option("--json", "as_json", is_flag=True, help="With --model or --mca: print the result as JSON.")
@quiet_option
def gen(symbol: str | None, model: str | None, isa: str | None, asm: bool, mca: str | None,
        as_json: bool) -> None:  # fmt: skip
    """Print the generated C of one kernel, by its symbol."""
    refuse(
        (symbol is None and model is None, "give a kernel's symbol, or --model to list a model's kernels"),
        (symbol is not None and model is not None, "give a kernel's symbol or --model, not both"),
        (model is not None and (asm or mca is not None), "--asm and --mca are about one kernel: give its symbol"),
        (symbol is not None and isa is not None, "--isa goes with --model: a symbol names its level"),
        (asm and mca is not None, "--asm prints and --mca estimates: give one of them"),
        (as_json and model is None and mca is None, "--json goes with --model or --mca: C and assembly are text"),
    )
    with progress_bar() as listen:
        if model is not None:
            listed = api.kernels(model, isa=isa, progress=listen)
        elif mca is not None:
            listen("estimating the kernel", 0, 0)
            found = api.kernel_cost(str(symbol), mca)
        else:
            listen("compiling the kernel", 0, 0)
            text = api.gen(str(symbol), asm=asm)
    if as_json:
        say_json({"kernels": listed} if model is not None else found.to_json())
    elif model is not None:
        say("\n".join(listed))
    elif mca is not None:
        OUT.print(tables.cost(found))
    else:
        say(text, nl=False)
