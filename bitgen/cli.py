"""The command line: parse, one call of the API, print."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from bitgen import Model, Sampling, __version__, api, energy, gguf_io, peers, profile, show
from bitgen import plot as pictures
from bitgen.bench import bench as bench_model
from bitgen.engine.embed import POOLINGS
from bitgen.engine.lookup import LOOKUP
from bitgen.engine.model import SHIPPED, default_threads
from bitgen.errors import BitgenError
from bitgen.targets import ARCHES

ERR = Console(stderr=True)
OUT = Console(width=None if sys.stdout.isatty() else 160)  # a table in a file or a pipe is not squeezed


class Group(click.Group):
    """Turns BitgenErrors into one message and exit code 1, an interrupt into 130, a closed pipe into silence."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BitgenError as e:
            click.echo(f"bitgen: {e}", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo("", err=True)
            ctx.exit(130)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the exit flush must not complain
            ctx.exit(0)
        except OSError as e:  # a full disk, a missing permission
            click.echo(f"bitgen: {e.filename or 'writing a file'}: {e.strerror}", err=True)
            ctx.exit(1)


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A listener that draws one bar per stage on stderr; silent where stderr is not a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=ERR, transient=True, disable=not ERR.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def listen(stage: str, done: int, total: int) -> None:
            bar.update(task, description=stage, completed=done, total=total)

        yield listen


def numbers(_: click.Context, __: click.Parameter, text: str) -> list[int]:
    """A comma-separated list of non-negative integers."""
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list like 128,512") from None
    if any(v < 0 for v in values):
        raise click.BadParameter("negative numbers make no sense here")
    return values


model_option = click.option(
    "-m", "--model", "model", metavar="FILE", help="A GGUF file. [default: the model that ships]"
)
threads_option = click.option(
    "-t", "--threads", type=click.IntRange(1, 1024), help="[default: the tuned count, else all CPUs]"
)
isa_option = click.option("--isa", help="Instruction-set level. [default: the best this CPU executes]")
head_option = click.option(
    "--head",
    type=click.Choice(["certified", "f16", "int8"]),
    default="certified",
    show_default=True,
    help="The LM head: exact at half the bytes for greedy and top-k choices; exact; or rounded to int8.",
)
cache_option = click.option(
    "--cache",
    type=click.Choice(["f16", "int8"]),
    default="f16",
    show_default=True,
    help="Keys and values: halves, or half the bytes.",
)

type_option = click.option(
    "--type",
    "type_",
    type=click.Choice(list(gguf_io.FILE_TYPES)),
    default=None,
    help="i2_s, the default, for bitnet.cpp; tq1_0 or tq2_0 for llama.cpp, 1.7 or 2.1 bits a weight; t5, bitgen's own, "
    "1.6 bits; q2_0 (llama.cpp), for models with a scale for every 64 or 128 weights, whose default it is.",
)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="bitgen")
def main() -> None:
    """Run ternary (BitNet b1.58) language models on CPUs, with kernels generated and tuned for this one."""


@main.command()
@click.option("-p", "--prompt", required=True, help="Text to continue; - reads it from standard input.")
@model_option
@click.option("-n", "--max-tokens", type=click.IntRange(min=0), default=256, show_default=True)
@threads_option
@click.option("--temp", type=float, default=0.7, show_default=True, help="Temperature; 0 is greedy.")
@click.option("--top-k", type=int, default=40, show_default=True, help="Keep the k likeliest tokens; 0: all.")
@click.option(
    "--top-p",
    type=float,
    default=0.9,
    show_default=True,
    help="Keep the likeliest tokens of this total probability; 1: all.",
)
@click.option(
    "--min-p",
    type=float,
    default=0.0,
    show_default=True,
    help="Drop tokens below this share of the likeliest one's probability.",
)
@click.option("--repeat-penalty", type=float, default=1.1, show_default=True, help="Over the last 64 tokens; 1: off.")
@click.option("--seed", type=int, help="Same seed, same text. [default: random]")
@click.option("--ignore-eos", is_flag=True, help="Go on after the model's stop tokens.")
@click.option(
    "--prompt-lookup",
    type=click.IntRange(min=0),
    is_flag=False,
    flag_value=LOOKUP,
    default=0,
    metavar="[N]",
    help=f"Try up to N tokens at once that once followed the last few: same text, sooner if it repeats. [N: {LOOKUP}]",
)
@isa_option
@head_option
@cache_option
@click.option(
    "--i2s-layout",
    type=click.Choice(["x86", "arm"]),
    default="x86",
    show_default=True,
    help="Block layout of I2_S tensors in the file.",
)
@click.option(
    "--activation",
    type=click.Choice(["relu2", "silu"]),
    help="Override the FFN activation that the file implies.",
)
def run(prompt: str, model: str | None, max_tokens: int, threads: int | None, temp: float, top_k: int, top_p: float,
        min_p: float, repeat_penalty: float, seed: int | None, ignore_eos: bool, prompt_lookup: int,
        isa: str | None, head: Any, cache: Any, i2s_layout: Any, activation: str | None) -> None:  # fmt: skip
    """Continue a prompt. Text goes to stdout as it comes, timing to stderr."""
    sampling = Sampling(
        *(temp, top_k, top_p, min_p, repeat_penalty),
        seed=int.from_bytes(os.urandom(4), "little") if seed is None else seed,
    )
    text = sys.stdin.read() if prompt == "-" else prompt
    with progress_bar() as listen:
        loaded = Model.load(
            *(model,),
            threads=threads,
            isa=isa,
            head=head,
            i2s_layout=i2s_layout,
            activation=activation,
            progress=listen,
        )
    generation = loaded.generate(
        text, max_tokens, stop=not ignore_eos, sampling=sampling, cache=cache, lookup=prompt_lookup
    )
    try:
        click.echo(text, nl=False)
        for piece in generation:
            click.echo(piece, nl=False)
        click.echo()
    finally:
        click.echo(f"{generation.timing} | {loaded.about}, seed {sampling.seed}", err=True)


@main.command("embed")
@click.argument("texts", nargs=-1)
@model_option
@click.option("-f", "--file", type=click.File(encoding="utf-8"), help="Take the lines of a file as texts; -: of stdin.")
@click.option("--pooling", type=click.Choice(list(POOLINGS)), help="[default: what the file says, else last]")
@click.option("--npy", type=click.Path(dir_okay=False, path_type=Path), help="Write float32 [texts, hidden] here.")
@click.option("--json", "as_json", is_flag=True, help="Print one object with the texts and the model's name.")
@threads_option
@isa_option
def embed_(texts: tuple[str, ...], model: str | None, file: Any, pooling: str | None, npy: Path | None, as_json: bool,
           threads: int | None, isa: str | None) -> None:  # fmt: skip
    """Turn texts into vectors of length one: a line of numbers each. Without texts the lines of stdin are taken."""
    if texts and file:
        raise click.UsageError("give texts or --file, not both")
    lines = list(texts) if texts else [line.rstrip("\r\n") for line in file or sys.stdin]
    with progress_bar() as listen:
        loaded = Model.load(*(model,), threads=threads, isa=isa, head="f16", progress=listen)
    vectors = loaded.embed(lines, pooling=pooling)
    if npy:
        api.save_array(npy, vectors)
        click.echo(npy)
        return
    rows = [[float(str(value)) for value in row] for row in vectors]
    if as_json:
        pairs = [{"text": text, "vector": row} for text, row in zip(lines, rows, strict=True)]
        click.echo(json.dumps({"model": loaded.shape.name, "pooling": pooling or loaded.pooling, "embeddings": pairs}))
        return
    for row in rows:
        click.echo(json.dumps(row))


@main.command()
@click.option("--model", required=True, metavar="MODEL", help="A preset name or a GGUF file.")
@click.option("--threads", type=click.IntRange(1, 1024), help="The most threads to use. [default: all CPUs]")
@click.option("--quick/--thorough", "quick", default=True, show_default=True, help="How many candidates to try.")
@isa_option
def tune(model: str, threads: int | None, quick: bool, isa: str | None) -> None:
    """Find the fastest kernels for a model's matrices on this CPU."""
    with progress_bar() as listen:
        report = api.tune(model, threads=threads, effort="quick" if quick else "thorough", isa=isa, listener=listen)
    table = Table(
        title=f"{report.model} on {report.isa}, {report.threads} threads",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for column in ("matrix", "shape", "phase", "kernel", "time", "rate", "share", "vs default"):
        table.add_column(
            column, justify="left" if column in ("matrix", "phase", "kernel") else "right", overflow="fold"
        )
    for row in report.rows:
        table.add_row(*row)
    OUT.print(table)
    click.echo(f"plan: {report.path}")


@main.command()
@click.option("--model", "--preset", "model", default=SHIPPED, show_default=True, help="A preset name or a GGUF file.")
@click.option("--arch", type=click.Choice(["native", *ARCHES]), default="native", show_default=True)
@click.option("--isa", help="Only this instruction-set level. [default: every level of the architecture]")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("build"),
    show_default=True,
)
def build(model: str, arch: str, isa: str | None, output: Path) -> None:
    """Generate and compile a model's library: sources, spec and libbitgen.so in a folder of their own."""
    with progress_bar() as listen:
        artefact = api.build(model, arch=arch, isa=isa, root=output, progress=lambda d, t: listen("compiling", d, t))
    click.echo(artefact.path)


@main.command()
@click.argument("preset")
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--seed", type=int, default=0, show_default=True)
@type_option
def synth(preset: str, output: Path, seed: int, type_: Any) -> None:
    """Write a model of a preset's exact shape with random weights, for tuning and benchmarks."""
    with progress_bar() as listen:
        api.synth(preset, output, seed=seed, type=type_, progress=lambda d, t: listen("writing", d, t))
    click.echo(output)


@main.command()
@click.argument("source")
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path))
@type_option
def convert(source: str, output: Path, type_: Any) -> None:
    """Convert a checkpoint to GGUF.

    SOURCE is a Hugging Face folder, hf:owner/name (or hf:owner/name@revision) to be downloaded, the name of a preset
    that is on the Hub, or a GGUF file. An interrupted conversion goes on where it was when it is called again.
    """
    checkpoint = api.open_source(source)  # a download draws bars of its own
    with progress_bar() as listen:
        api.convert(checkpoint, output, type=type_, progress=lambda d, t: listen("converting", d, t))
    click.echo(output)


@main.command()
@model_option
@click.option(
    "-t",
    "--threads",
    callback=numbers,
    default=str(default_threads()),
    show_default=True,
    help="Thread counts, like 1,2.",
)
@click.option("--prompt", callback=numbers, default="128", show_default=True, help="Prefill lengths, like 128,512.")
@click.option("--gen", type=click.IntRange(min=0), default=64, show_default=True, help="Tokens to decode.")
@click.option(
    "--context", callback=numbers, default="0", show_default=True, help="Tokens in the cache before, like 0,3500."
)
@click.option(
    "--batch", callback=numbers, default="1", show_default=True, help="Sequences to decode together, like 1,4,16."
)
@isa_option
@head_option
@cache_option
@click.option("--profile", "profiled", is_flag=True, help="Show where the time of a token goes, step by step.")
@click.option(
    "--vs",
    multiple=True,
    type=click.Choice(list(peers.PEERS)),
    help="Run this engine on the same shape in alternation; repeatable. Needs its package from PyPI.",
)
@click.option("--energy", "energetic", is_flag=True, help="Joules per token, where RAPL counters can be read.")
@click.option(
    "--plot",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw the results (.png, .svg, .pdf).",
)
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def bench(
    model: str | None,
    threads: list[int],
    prompt: list[int],
    gen: int,
    context: list[int],
    batch: list[int],
    isa: str | None,
    head: Any,
    cache: Any,
    profiled: bool,
    vs: tuple[str, ...],
    energetic: bool,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Measure prefill and decode, beside the machine's own limits measured in the same run."""
    peers.require(vs)  # what is missing is said before anything is measured
    if plot:
        pictures.require(plot)
    with progress_bar() as listen:
        loaded = Model.load(*(model,), isa=isa, head=head, progress=listen)
        report = bench_model(loaded, threads, prompt, gen, listen, contexts=context, batches=batch, cache=cache)
        if profiled:
            report["profile"] = profile.profile(loaded, report, listen)
        if vs:
            report["peers"] = peers.compare(loaded, vs, report, listen)
        if energetic:
            report["energy"] = energy.energy(loaded, report, listen)
    if plot:
        pictures.draw(report, plot)
    if as_json:
        click.echo(json.dumps(report, indent=1))
        return
    title = f"{loaded.shape.name} on {loaded.lookup.isa}, {loaded.head} head, {cache} cache; {report['host']['cpu']}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in (
        "test",
        "threads",
        "tok/s",
        "min - max",
        "MB/token",
        "GB/s",
        "of bandwidth",
        "of peak ops",
    ):
        table.add_column(column, justify="left" if column == "test" else "right")
    for r in report["results"]:
        table.add_row(
            *(
                f"{r['kind']} {r['tokens']}"
                + (f" at {r['context']}" if r["context"] else "")
                + (f" x {r['batch']}" if r["batch"] > 1 else ""),
                str(r["threads"]),
                f"{r['tok_s']:.1f}",
                f"{r['tok_s_min']:.1f} - {r['tok_s_max']:.1f}",
            ),
            *(
                f"{r['bytes_per_token'] / 1e6:.1f}",
                f"{r['gb_s']:.1f}",
                f"{r['bandwidth_share']:.0%}",
                f"{r['ops_share']:.0%}",
            ),
        )
    OUT.print(table)
    for count, rate in report["host"]["read_gb_s"].items():
        click.echo(f"{count} thread(s): reads {rate:.1f} GB/s, peak {report['host']['peak_gop_s'][count]:.0f} GOP/s")
    if report["host"]["load_before"] > 0.5:
        click.echo(f"the machine was busy before this began (load {report['host']['load_before']:.1f}): expect noise")
    for extra in show.extras(report):
        OUT.print(extra)
    if plot:
        click.echo(f"plot: {plot}")


@main.command()
@click.argument("symbol", required=False)
@click.option("--model", help="List the kernels of a preset or GGUF file instead.")
@isa_option
@click.option("--asm", is_flag=True, help="Show the compiler's assembly.")
def gen(symbol: str | None, model: str | None, isa: str | None, asm: bool) -> None:
    """Print the generated C of one kernel, by its symbol."""
    if (symbol is None) == (model is None):
        raise click.UsageError("give a kernel's symbol, or --model to list a model's kernels")
    if symbol is not None:
        click.echo(api.gen(symbol, asm=asm), nl=False)
    else:
        for name in api.kernels(str(model), isa=isa):
            click.echo(name)


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True)
def info(file: Path, as_json: bool) -> None:
    """Describe a model file: architecture, shape, tensors, and what it would run with."""
    facts = api.info(file)
    if as_json:
        click.echo(json.dumps(facts, indent=1))
        return
    width = max(map(len, facts))
    for key, value in facts.items():
        counts = ", ".join(f"{n} {name}" for name, n in value.items()) if isinstance(value, dict) else value
        click.echo(f"{key:<{width}}  {counts}")
