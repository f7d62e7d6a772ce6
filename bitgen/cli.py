"""The command line: parse, one call of the API, print."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from bitgen import Model, Sampling, __version__, api, dialogue, energy, gguf_io, peers, profile, score, show
from bitgen import plot as pictures
from bitgen import verify as verification
from bitgen.bench import bench as bench_model
from bitgen.blocks import I2S_LAYOUTS
from bitgen.chat import Chat
from bitgen.chat_templates import NAMED
from bitgen.compile import cache_root
from bitgen.engine.embed import POOLINGS
from bitgen.engine.lookup import LOOKUP
from bitgen.engine.model import SHIPPED, default_threads, shipped_path
from bitgen.errors import BitgenError
from bitgen.targets import ARCHES, SYSTEMS

ERR = Console(stderr=True)
OUT = Console(width=None if sys.stdout.isatty() else 160)  # a table in a file or a pipe is not squeezed


class Group(click.Group):
    """Turns BitgenErrors and a lack of memory into one message and exit code 1, an interrupt into 130, a closed pipe
    into silence."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BitgenError as e:
            click.echo(f"bitgen: {e}", err=True)
            ctx.exit(1)
        except (MemoryError, RuntimeError) as e:
            # A thread without room for its stack is a RuntimeError, and so are click's own exits.
            if isinstance(e, RuntimeError) and "can't start new thread" not in str(e):
                raise
            click.echo("bitgen: not enough memory; choose a smaller model or a shorter context, or free some", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo("", err=True)
            ctx.exit(130)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the exit flush must not complain
            ctx.exit(0)
        except OSError as e:  # a full disk, a missing permission
            where = e.filename or f"writing a file (the cache is {cache_root()}; BITGEN_CACHE names another)"
            click.echo(f"bitgen: {where}: {e.strerror}", err=True)
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


def warn(text: str | None) -> None:
    """Say on stderr what may be wrong, if anything may."""
    if text:
        click.echo(f"bitgen: warning: {text}", err=True)


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
    help="The LM head: exact at 3/8 of the bytes for greedy and top-k choices; exact; or rounded to int8.",
)
cache_option = click.option(
    "--cache",
    type=click.Choice(["f16", "int8"]),
    default="f16",
    show_default=True,
    help="Keys and values: halves, or half the bytes.",
)


def reading_options(command: Any) -> Any:
    """What a GGUF file does not say of itself, or says wrongly: keyword arguments of gguf_io.open."""
    for option in (
        click.option(
            "--activation",
            type=click.Choice(["relu2", "silu"]),
            help="Override the FFN activation that the file implies.",
        ),
        click.option(
            "--tl-tiles",
            default="",
            metavar="MxK=BM/BK/bm,...",
            help="Tiles of TL1 and TL2 tensors, where bitnet.cpp's scripts do not decide them.",
        ),
        click.option(
            "--i2s-layout",
            type=click.Choice(I2S_LAYOUTS),
            default="x86",
            show_default=True,
            help="The I2_S that bitnet.cpp wrote on x86; on ARM since November 2025; or without its ACT_PARALLEL.",
        ),
    ):
        command = option(command)
    return command


type_option = click.option(
    "--type",
    "type_",
    type=click.Choice(list(gguf_io.FILE_TYPES)),
    default=None,
    help="i2_s, the default, for bitnet.cpp; tq1_0 or tq2_0 for llama.cpp, 1.7 or 2.1 bits a weight; t5, bitgen's own, "
    "1.6 bits; q2_0 (llama.cpp), for models with a scale for every 64 or 128 weights, whose default it is.",
)


SAMPLING = (
    click.option("--temp", type=float, default=0.7, show_default=True, help="Temperature; 0 is greedy."),
    click.option("--top-k", type=int, default=40, show_default=True, help="Keep the k likeliest tokens; 0: all."),
    click.option(
        *("--top-p",),
        type=float,
        default=0.9,
        show_default=True,
        help="Keep the likeliest tokens of this total probability; 1: all.",
    ),
    click.option(
        *("--min-p",),
        type=float,
        default=0.0,
        show_default=True,
        help="Drop tokens below this share of the likeliest one's probability.",
    ),
    click.option(
        "--repeat-penalty", type=float, default=1.1, show_default=True, help="Over the last 64 tokens; 1: off."
    ),
    click.option("--seed", type=int, help="Same seed, same text. [default: random]"),
)


def sampling_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of Sampling, which the command gets as `sampling`."""

    @functools.wraps(command)
    def sampled(*args: Any, temp: float, top_k: int, top_p: float, min_p: float, repeat_penalty: float,
                seed: int | None, **more: Any) -> None:  # fmt: skip
        chosen = int.from_bytes(os.urandom(4), "little") if seed is None else seed
        sampling = Sampling(temp, top_k, top_p, min_p, repeat_penalty, seed=chosen)
        command(*args, sampling=sampling, **more)

    for option in reversed(SAMPLING):
        sampled = option(sampled)
    return sampled


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="bitgen")
def main() -> None:
    """Run ternary (BitNet b1.58) language models on CPUs, with kernels generated and tuned for this one."""


@main.command()
@click.option("-p", "--prompt", required=True, help="Text to continue; - reads it from standard input.")
@model_option
@click.option("-n", "--max-tokens", type=click.IntRange(min=0), default=256, show_default=True)
@threads_option
@sampling_options
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
@click.option(
    "--logprobs",
    type=click.IntRange(min=0),
    metavar="K",
    help="After the text, each token's log probability and the K likeliest, on stderr.",
)
@isa_option
@head_option
@cache_option
@reading_options
def run(prompt: str, model: str | None, max_tokens: int, threads: int | None, sampling: Sampling, ignore_eos: bool,
        prompt_lookup: int, logprobs: int | None, isa: str | None, head: Any, cache: Any,
        **reading: Any) -> None:  # fmt: skip
    """Continue a prompt. Text goes to stdout as it comes, timing to stderr."""
    text = sys.stdin.read() if prompt == "-" else prompt
    with progress_bar() as listen:
        loaded = Model.load(
            *(model,),
            threads=threads,
            isa=isa,
            head=head,
            progress=listen,
            **reading,
        )
    warn(loaded.doubt)
    generation = loaded.generate(
        *(text, max_tokens),
        stop=not ignore_eos,
        sampling=sampling,
        cache=cache,
        lookup=prompt_lookup,
        logprobs=logprobs,
    )
    try:
        click.echo(text, nl=False)
        for piece in generation:
            click.echo(piece, nl=False)
        click.echo()
    finally:
        for line in show.logprobs(loaded.tokenizer, generation.choices):
            click.echo(line, err=True)
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
@model_option
@click.option("--system", metavar="TEXT", help="What the model is told before the conversation.")
@click.option("-n", "--max-tokens", type=click.IntRange(min=1), default=1024, show_default=True, help="Of an answer.")
@click.option("--chat-template", metavar="NAME|FILE", help=f"{', '.join(NAMED)}, or a Jinja file. [default: its own]")
@click.option("--context", type=click.IntRange(min=16), help="Tokens to remember. [default: the model's]")
@sampling_options
@threads_option
@isa_option
@cache_option
@reading_options
def chat(model: str | None, system: str | None, max_tokens: int, chat_template: str | None, context: int | None,
         sampling: Sampling, threads: int | None, isa: str | None, cache: Any, **reading: Any) -> None:  # fmt: skip
    """Talk with a model. Ctrl-C stops an answer, Ctrl-D ends; /help has the rest."""
    with progress_bar() as listen:
        loaded = Model.load(model, threads=threads, isa=isa, progress=listen, **reading)
    warn(loaded.doubt)
    dialogue.run(Chat(loaded, system, chat_template, context, cache), max_tokens, sampling)


@main.command()
@model_option
@click.option("--against", metavar="hf:DIR", help="Also compare with transformers in float32 on this checkpoint.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write the receipt, as JSON.")
@reading_options
def verify(model: str | None, against: str | None, output: Path | None, **reading: Any) -> None:
    """Prove on this machine that kernels, logits and choices are right, at every level that its CPU executes."""
    if output and not output.parent.is_dir():
        raise BitgenError(f"there is no folder {output.parent} for the receipt")
    with progress_bar() as listen:
        receipt = verification.verify(Path(model) if model else shipped_path(), against, listen, **reading)
    OUT.print(show.receipt(receipt))
    if output:
        output.write_text(json.dumps(receipt.to_json(), indent=1) + "\n")
        click.echo(output)
    if not receipt.ok:
        raise BitgenError("verification failed: please report it with the receipt (-o receipt.json)")


@main.command()
@model_option
@click.option("-f", "--file", type=click.File(encoding="utf-8"), required=True, help="A text; -: standard input.")
@click.option("--ctx", type=int, default=512, show_default=True, help="Tokens of a window.")
@click.option(
    "--stride",
    type=int,
    default=0,
    show_default=True,
    help="Tokens between windows' starts, each scoring what is new to it; 0: apart, each scoring its second half.",
)
@threads_option
@isa_option
@cache_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@reading_options
def perplexity(model: str | None, file: Any, ctx: int, stride: int, threads: int | None, isa: str | None, cache: Any,
               as_json: bool, **reading: Any) -> None:  # fmt: skip
    """How well a model predicts a text, with the standard error: comparable with llama-perplexity."""
    try:
        text = file.read()
    except UnicodeDecodeError as e:
        raise BitgenError(f"{file.name} is not UTF-8 text ({e.reason} at byte {e.start})") from None
    with progress_bar() as listen:
        loaded = Model.load(model, threads=threads, isa=isa, progress=listen, **reading)
        warn(loaded.doubt)
        found = score.perplexity(
            *(loaded, text, ctx, stride, cache),
            progress=lambda done, of, ppl: listen(f"perplexity {ppl:.3f}", done, of),
        )
    click.echo(json.dumps(asdict(found)) if as_json else found)
    click.echo(loaded.about, err=True)


@main.command()
@click.option("--model", required=True, metavar="MODEL", help="A preset name or a GGUF file.")
@click.option("--threads", type=click.IntRange(1, 1024), help="The most threads to use. [default: all CPUs]")
@click.option("--quick/--thorough", "quick", default=True, show_default=True, help="How many candidates to try.")
@isa_option
@click.option("--remote", metavar="[USER@]HOST[:PORT]", help="Tune on this Linux device, over SSH, not here.")
@click.option("--ssh", metavar="COMMAND", help="How to connect, like 'ssh -i KEY'. [default: $BITGEN_SSH, else ssh]")
@click.option("--cost-model", type=click.Choice(["llvm-mca"]), help="Estimate for a CPU that is not here; needs --cpu.")
@click.option("--cpu", help="That CPU by LLVM's name, like cortex-a76, neoverse-n1, apple-m1, znver3.")
@click.option("--bytes-per-cycle", type=click.FloatRange(min=0, min_open=True),
              help="What memory gives one of its cores: GB/s / cores / GHz. [default: enough]")  # fmt: skip
@click.option("--arch", type=click.Choice(list(ARCHES)), help="Of that device or CPU. [default: what it says; ours]")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Keep the plan in this file.")
def tune(model: str, threads: int | None, quick: bool, isa: str | None, remote: str | None, ssh: str | None,
         cost_model: str | None, cpu: str | None, bytes_per_cycle: float | None, arch: str | None,
         output: Path | None) -> None:  # fmt: skip
    """Find the fastest kernels for a model's matrices: on this CPU, on a device behind SSH, or by estimate."""
    if remote is None and (ssh or (arch and cpu is None)):
        raise click.UsageError("--arch and --ssh go with --remote, --arch also with --cost-model")
    if (cost_model is None) != (cpu is None) or (cpu is None and bytes_per_cycle) or (cpu and remote):
        raise click.UsageError("--cost-model and --cpu go together, --bytes-per-cycle with them, --remote without")
    effort: Any = "quick" if quick else "thorough"
    if cpu is not None:
        estimate_plan(model, cpu=cpu, arch=arch, isa=isa, effort=effort, bytes_per_cycle=bytes_per_cycle, output=output)
        return
    with progress_bar() as listen:
        report = api.tune(
            *(model,),
            threads=threads,
            effort=effort,
            isa=isa,
            listener=listen,
            remote=remote,
            arch=arch,
            ssh=ssh,
            output=output,
        )
    table = Table(
        title=f"{report.model} on {report.isa}, {report.threads} threads; {report.cpu}",
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
    if report.disturbed:
        click.echo(
            f"the machine had other work while {', '.join(report.disturbed)} ran: expect noise; "
            "the same command measures that again"
        )
    click.echo(f"plan: {report.path}")
    if report.build:
        click.echo(f"next: {report.build}")


def estimate_plan(model: str, **options: Any) -> None:
    """`tune --cost-model`: a table of what it chose, and where the plan is."""
    with progress_bar() as listen:
        report = api.estimate(model, listener=listen, **options)
    table = Table(title=f"{report.model} on {report.isa}, {report.basis}", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("matrix", "shape", "phase", "kernel", "cycles/token", "/weight", "instr./weight", "vs default"):
        table.add_column(column, justify="left" if column in ("matrix", "phase", "kernel") else "right")
    for row in report.rows:
        table.add_row(*row)
    OUT.print(table)
    click.echo(f"plan: {report.path}\nnext: {report.build}")


@main.command()
@click.option(
    *("-m", "--model", "--preset", "model"),
    default=SHIPPED,
    show_default=True,
    help="A GGUF file, or (for a library) a preset name.",
)
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
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("build"),
    show_default=True,
)
@click.option("--standalone", is_flag=True, help="A program that needs no Python, and its weights, instead.")
@click.option("--one-file", is_flag=True, help="With --standalone: the weights within the program's file.")
@head_option
@reading_options
def build(
    model: str, arch: str, system: str | None, isa: str | None, plans: tuple[Path, ...], output: Path,
    standalone: bool, one_file: bool, head: Any, **reading: Any,
) -> None:  # fmt: skip
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
        click.echo(artefact.path)
        return
    click.echo("\n".join(map(str, made.files)))
    click.echo(made.about, err=True)


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
@reading_options
def convert(source: str, output: Path, type_: Any, **reading: Any) -> None:
    """Convert a checkpoint to GGUF.

    SOURCE is a Hugging Face folder, hf:owner/name (or hf:owner/name@revision) to be downloaded, the name of a preset
    that is on the Hub, or a GGUF file. An interrupted conversion goes on where it was when it is called again.
    """
    checkpoint = api.open_source(source, **reading)  # a download draws bars of its own
    warn(api.doubt(checkpoint))
    try:
        with progress_bar() as listen:
            api.convert(checkpoint, output, type=type_, progress=lambda d, t: listen("converting", d, t))
    except KeyboardInterrupt:
        click.echo("interrupted; the same command goes on from here", err=True)
        raise
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
@click.option("--mca", metavar="CPU", help="Show its instructions and cycles on a CPU, by llvm-mca's model of it.")
def gen(symbol: str | None, model: str | None, isa: str | None, asm: bool, mca: str | None) -> None:
    """Print the generated C of one kernel, by its symbol."""
    if (symbol is None) == (model is None):
        raise click.UsageError("give a kernel's symbol, or --model to list a model's kernels")
    if symbol is not None and mca is not None:
        click.echo(str(api.kernel_cost(symbol, mca)))
    elif symbol is not None:
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
    warn(facts.pop("warning", None))
    width = max(map(len, facts))
    for key, value in facts.items():
        counts = ", ".join(f"{n} {name}" for name, n in value.items()) if isinstance(value, dict) else value
        click.echo(f"{key:<{width}}  {counts}")
