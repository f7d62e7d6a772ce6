"""Commands that choose, compile and show kernels: tune, build, gen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bitgen import api
from bitgen.cli import tables
from bitgen.cli.console import OUT, progress_bar, say
from bitgen.cli.options import finite, head_option, isa_option, reading_options
from bitgen.data import SHIPPED
from bitgen.targets import ARCHES, SYSTEMS


@click.command()
@click.option("--model", required=True, metavar="MODEL", help="A preset name or a GGUF file.")
@click.option("--threads", type=click.IntRange(1, 1024), help="The most threads to use. [default: all CPUs]")
@click.option("--quick/--thorough", "quick", default=True, show_default=True, help="How many candidates to try.")
@isa_option
@click.option("--remote", metavar="[USER@]HOST[:PORT]", help="Tune on this Linux device, over SSH, not here.")
@click.option("--ssh", metavar="COMMAND", help="How to connect, like 'ssh -i KEY'. [default: $BITGEN_SSH, else ssh]")
@click.option("--cost-model", type=click.Choice(["llvm-mca"]), help="Estimate for a CPU that is not here; needs --cpu.")
@click.option("--cpu", help="That CPU by LLVM's name, like cortex-a76, neoverse-n1, apple-m1, znver3.")
@click.option("--bytes-per-cycle", type=click.FloatRange(min=0, min_open=True), callback=finite,
              help="What memory gives one of its cores: GB/s / cores / GHz. [default: enough]")  # fmt: skip
@click.option("--arch", type=click.Choice(list(ARCHES)), help="Of that device or CPU. [default: what it says; ours]")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Keep the plan in this file.")
def tune(model: str, threads: int | None, quick: bool, isa: str | None, remote: str | None, ssh: str | None,
         cost_model: str | None, cpu: str | None, bytes_per_cycle: float | None, arch: str | None,
         output: Path | None) -> None:  # fmt: skip
    """Find the fastest kernels for a model's matrices: on this CPU, on a device behind SSH, or by estimate."""
    if remote is None and (ssh is not None or (arch and cpu is None)):
        raise click.UsageError("--arch and --ssh go with --remote, --arch also with --cost-model")
    if (cost_model is None) != (cpu is None) or (cpu is None and bytes_per_cycle) or (cpu and remote):
        raise click.UsageError("--cost-model and --cpu go together, --bytes-per-cycle with them, --remote without")
    common: dict[str, Any] = {
        "arch": arch, "isa": isa, "effort": "quick" if quick else "thorough", "output": output,
    }  # fmt: skip
    if cpu is not None:
        _estimate(model, cpu=cpu, bytes_per_cycle=bytes_per_cycle, **common)
    else:
        _tune(model, threads=threads, remote=remote, ssh=ssh, **common)


def _tune(model: str, **options: Any) -> None:
    """Print what was measured, and where the plan is."""
    with progress_bar() as listen:
        report = api.tune(model, listener=listen, **options)
    OUT.print(tables.tuned(report))
    if report.disturbed:
        say(
            f"the machine had other work while {', '.join(report.disturbed)} ran: expect noise; "
            "the same command measures that again"
        )
    say(f"plan: {report.path}")
    if report.build:
        say(f"next: {report.build}")


def _estimate(model: str, **options: Any) -> None:
    """`tune --cost-model`: print what was estimated, and where the plan is."""
    with progress_bar() as listen:
        report = api.estimate(model, listener=listen, **options)
    OUT.print(tables.estimated(report))
    say(f"plan: {report.path}\nnext: {report.build}")


@click.command()
@click.option("-m", "--model", "--preset", "model", default=SHIPPED, show_default=True,
              help="A GGUF file, or (for a library) a preset name.")  # fmt: skip
@click.option("--arch", type=click.Choice(["native", *ARCHES]), default="native", show_default=True)
@click.option(
    "--os",
    "system",
    type=click.Choice(list(SYSTEMS)),
    help="linux is glibc's; musl also makes for Alpine. [default: the host's, linux for another architecture]",
)
@click.option(
    "--isa",
    help="Only this instruction-set level; of a program, the one whose layouts the weights take. "
    "[default: every level of the architecture; the lowest with vector instructions]",
)
@click.option("--plan", "plans", multiple=True, type=click.Path(path_type=Path), help="From tune; repeatable.")
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), default=Path("build"),
              show_default=True)  # fmt: skip
@click.option("--standalone", is_flag=True, help="A program that needs no Python, and its weights, instead.")
@click.option("--one-file", is_flag=True, help="With --standalone: the weights within the program's file.")
@head_option
@reading_options
def build(model: str, arch: str, system: str | None, isa: str | None, plans: tuple[Path, ...], output: Path,
          standalone: bool, one_file: bool, head: Any, **reading: Any) -> None:  # fmt: skip
    """Generate and compile a model's library: sources, spec and libbitgen.so in a folder of their own.

    For macOS it is libbitgen.dylib, for Windows bitgen.dll. With --standalone: a program that continues prompts, and
    its packed weights.
    """
    if one_file and not standalone:
        raise click.UsageError("--one-file goes with --standalone")
    where: dict[str, Any] = {"arch": arch, "system": system, "isa": isa, "plans": plans}
    with progress_bar() as listen:
        if standalone:
            made = api.standalone(
                model, **where, folder=output, one_file=one_file, head=head, progress=listen, **reading
            )
        else:
            artefact = api.build(model, **where, root=output, progress=lambda d, t: listen("compiling", d, t))
    if not standalone:
        say(artefact.path)
        return
    say("\n".join(map(str, made.files)))
    say(made.about, err=True)


@click.command()
@click.argument("symbol", required=False)
@click.option("--model", help="List the kernels of a preset or GGUF file instead.")
@isa_option
@click.option("--asm", is_flag=True, help="Show the compiler's assembly.")
@click.option("--mca", metavar="CPU", help="Show its instructions and cycles on a CPU, by llvm-mca's model of it.")
def gen(symbol: str | None, model: str | None, isa: str | None, asm: bool, mca: str | None) -> None:
    """Print the generated C of one kernel, by its symbol."""
    if (symbol is None) == (model is None):
        raise click.UsageError("give a kernel's symbol, or --model to list a model's kernels")
    if symbol is not None and mca is not None:
        say(str(api.kernel_cost(symbol, mca)))
    elif symbol is not None:
        say(api.gen(symbol, asm=asm), nl=False)
    else:
        for name in api.kernels(str(model), isa=isa):
            say(name)
