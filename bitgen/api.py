"""The verbs of the command line as functions with typed results: each resolves its model and calls one stage.

Verbs that run a model take what `Model.load` takes, None for the model that ships, or a `Model`. What `loading` stands
for are the options of `Model.load`: threads, isa, head, download, progress, and what the file does not say. progress:
True draws a bar on stderr; or a function of (stage, done, total), or tqdm (progress.py).
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from bitgen import targets
from bitgen.api_files import DOWNLOADING as DOWNLOADING
from bitgen.api_files import absent as absent
from bitgen.api_files import chatting as chatting
from bitgen.api_files import check_output as check_output
from bitgen.api_files import convert as convert
from bitgen.api_files import find as find
from bitgen.api_files import hide_bars as hide_bars
from bitgen.api_files import info as info
from bitgen.api_files import model_names as model_names
from bitgen.api_files import models as models
from bitgen.api_files import open_source as open_source
from bitgen.api_files import prune_cache as prune_cache
from bitgen.api_files import pull as pull
from bitgen.api_files import removal as removal
from bitgen.api_files import shape_of as shape_of
from bitgen.api_files import synth as synth
from bitgen.api_files import tokenizer as tokenizer
from bitgen.api_files import wanted as wanted
from bitgen.api_files import warning as warning
from bitgen.compile import clang, library, pack
from bitgen.compile import standalone as _standalone
from bitgen.compile.clang import Artefact, BuildOptions
from bitgen.convert import local as _local
from bitgen.data import SHIPPED, shipped_path
from bitgen.engine import arguments
from bitgen.engine import embed as _embed
from bitgen.engine import score as _score
from bitgen.engine.chat import Chat
from bitgen.engine.embed import Embeddings
from bitgen.engine.generate import Generation
from bitgen.engine.model import Model
from bitgen.engine.opened import Cache
from bitgen.engine.sampling import Sampling
from bitgen.engine.sampling import from_metadata as sampling_of
from bitgen.engine.score import Perplexity
from bitgen.engine.stops import Stop
from bitgen.errors import ArgumentError, BitgenError, UnsupportedError
from bitgen.gguf.reader import read_gguf
from bitgen.kernels import plan, render, space
from bitgen.kernels.evidence import Effort
from bitgen.measure import bench as _bench
from bitgen.measure import doctor as _doctor
from bitgen.measure import energy as _energy
from bitgen.measure import ladder as _ladder
from bitgen.measure import ladder_plot as _ladder_plot
from bitgen.measure import peers
from bitgen.measure import plot as _plot
from bitgen.measure import profile as _profile
from bitgen.measure import verify as _verify
from bitgen.measure.receipt import Receipt
from bitgen.measure.report import BenchReport
from bitgen.measure.rungs import LadderReport
from bitgen.progress import Watch, watched
from bitgen.spec import KernelSpec, ModelShape, Platform
from bitgen.tune import cost_model
from bitgen.tune import search as _tune
from bitgen.tune.lab import Host
from bitgen.tune.remote import Device
from bitgen.tune.report import TuneReport

# ---- run ------------------------------------------------------------------------------------------------------


def load(model: Model | str | Path | None = None, **loading: Any) -> Model:
    """Open a model; one that is open already is returned as it is, and takes no other option than `progress`."""
    late = ", ".join(sorted(loading.keys() - {"progress"}))
    if late and isinstance(model, Model):
        raise ArgumentError(f"{late}: the model is open already; give that to Model.load")
    if isinstance(model, Model):
        return model
    if model is not None:
        arguments.path("model", model)
    return Model.load(model, **loading)


def generate(
    model: Model | str | Path | None,
    prompt: str | Sequence[int],
    max_tokens: int = 256,
    *,
    stop: Stop = True,
    sampling: Sampling | None = None,
    cache: Cache = "f16",
    prompt_lookup: int = 0,
    logprobs: int | None = None,
    **loading: Any,
) -> Generation:
    """Continue a prompt: iterate over the result for pieces of text. The options are those of `Model.generate`."""
    return load(model, **loading).generate(
        prompt, max_tokens, stop=stop, sampling=sampling, cache=cache, prompt_lookup=prompt_lookup, logprobs=logprobs
    )


def chat(
    model: Model | str | Path | None = None,
    *,
    system: str | None = None,
    template: str | None = None,
    context: int | None = None,
    cache: Cache = "f16",
    **loading: Any,
) -> Chat:
    """Begin a conversation: `say` of the result streams an answer. template: a name, a Jinja file, or the model's."""
    return Chat(load(model, **loading), system, template, context, cache)


@watched
def embed(
    model: Model | str | Path | None,
    texts: Sequence[str],
    *,
    pooling: str | None = None,
    progress: Watch = None,
    **loading: Any,
) -> Embeddings:
    """Turn texts into vectors. pooling: as of `Model.embed`."""
    head = {} if isinstance(model, Model) else {"head": "f16"}  # no token is chosen: its codes would not be read
    opened = load(model, progress=progress, **{**head, **loading})
    by = opened.pooling if pooling is None else _embed.known_pooling(pooling)
    vectors = _embed.embed(opened, texts, by, partial(progress, "embedding texts"))
    return Embeddings(opened.shape.name, by, texts, vectors)


@watched
def perplexity(
    model: Model | str | Path | None,
    text: str,
    *,
    ctx: int = 512,
    stride: int = 0,
    cache: Cache = "f16",
    progress: Watch = None,
    **loading: Any,
) -> Perplexity:
    """How well a model predicts a text, over windows of `ctx` tokens; see score.perplexity."""

    def report(done: int, total: int, value: float) -> None:
        progress(f"perplexity so far {value:.3f}, windows", done, total)

    opened = load(model, progress=progress, **loading)
    progress("reading the text", 0, 0)
    return _score.perplexity(opened, text, ctx, stride, cache, report)


# ---- measure --------------------------------------------------------------------------------------------------


@watched
def bench(
    model: Model | str | Path | None = None,
    *,
    threads: Sequence[int] = (),
    prompt: Sequence[int] = (128,),
    gen: int = 64,
    contexts: Sequence[int] = (0,),
    batches: Sequence[int] = (1,),
    cache: Cache = "f16",
    profile: bool = False,
    vs: Sequence[str] = (),
    energy: bool = False,
    plot: Path | None = None,
    progress: Watch = None,
    **loading: Any,
) -> BenchReport:
    """Measure prefill and decode beside the machine's own limits, in every combination of what is given.

    threads: counts; none: as many as there are CPUs. prompt: tokens of each prefill; gen: tokens to decode.
    contexts: tokens in the cache before, none: 0; batches: sequences decoded together, none: 1.
    profile: time each step. vs: names of peers.PEERS to race with. energy: read the RAPL counters.
    plot: draw the results to this .png, .svg or .pdf file.
    """
    peers.require(vs)  # what is missing is said before anything is measured
    if plot:
        _plot.require(plot)
        check_output(plot, model)
    opened = load(model, progress=progress, **loading)
    report = _bench.bench(opened, threads, prompt, gen, progress, contexts=contexts, batches=batches, cache=cache)
    if profile:
        report = replace(report, profile=_profile.profile(opened, report, progress))
    if vs:
        report = replace(report, peers=peers.compare(opened, vs, report, progress))
    if energy:
        report = replace(report, energy=_energy.energy(opened, report, progress))
    if plot:
        _plot.draw(report, plot)
    return report


@watched
def ladder(
    sizes: Sequence[str] = (),
    *,
    threads: Sequence[int] = (),
    prompt: Sequence[int] = (),
    gen: int = 64,
    isa: str | None = None,
    head: pack.Head = "certified",
    cache: Cache = "f16",
    output: Path | None = None,
    plot: Path | None = None,
    progress: Watch = None,
) -> LadderReport:
    """Measure models of 125M to 100B random weights, one after the other; each is made, packed, measured, removed.

    sizes: like "7B"; none: all that fit. threads, prompt, gen: as of `bench`. output: the file of results, to which
    they are added and whose rungs are not measured again; None: one in the cache. plot: as of `bench`.
    """
    arguments.one_of("head", head, get_args(pack.Head))
    for path in filter(None, (output, plot)):
        check_output(path, None)
    if plot:
        _plot.require(plot)
    report = _ladder.climb(
        sizes, threads, prompt, gen, isa=isa, head=head, cache=cache, results=output, listener=progress
    )
    if plot:
        _ladder_plot.draw(report, plot)
    return report


@watched
def verify(
    model: str | Path | None = None, *, against: str | None = None, progress: Watch = None, **reading: Any
) -> Receipt:
    """Prove a model right on this machine, at every level that its CPU executes; see verify.verify."""
    return _verify.verify(_local.located(model), against, progress, **reading)


@watched
def doctor(model: str | Path | None = None, *, progress: Watch = None) -> _doctor.Report:
    """What bitgen finds on this machine, what is missing and what to do; nothing is raised for it.

    model: a preset, or a model that is here, which is to run; None: the one that ships, and 2B4T by its numbers.
    """
    asked: dict[str, str | Path] = {SHIPPED: shipped_path(), "2B4T": "2B4T"} if model is None else {str(model): model}
    shapes: dict[str, Callable[[], ModelShape]] = {name: partial(shape_of, each) for name, each in asked.items()}
    return _doctor.examine(shapes, progress)


# ---- tune, build ----------------------------------------------------------------------------------------------


@watched
def tune(
    model: str | Path,
    *,
    threads: int | None = None,
    effort: Effort = "quick",
    isa: str | None = None,
    progress: Watch = None,
    remote: str | None = None,
    arch: str | None = None,
    ssh: str | None = None,
    output: Path | None = None,
    reset: bool = False,
) -> TuneReport:
    """Tune every matrix of a model on this host, or on a device behind SSH, and save the plan.

    reset: first drop what the plan has decided for these matrices, whatever model they were tuned for.
    """
    check_output(output, model)
    shape = shape_of(model)
    site = Host(progress) if remote is None else Device(remote, arch, ssh, progress)
    isa, threads = isa or site.isas[0], site.cpus if threads is None else arguments.checked("threads", threads)
    path, gemms = output or plan.path_of(site.cpu, isa), shape.all_matrices
    dropped = plan.forget(path, gemms.values()) if reset else set()
    made = _tune.tune(list(gemms.values()), isa, threads, effort, progress, site, path)
    command = ["bitgen", "build", "--model", str(model), "--arch", site.arch, "--plan", str(path)]
    build = shlex.join(command) if remote or output else ""
    return TuneReport(shape, made, path, build, threads, tuple(role for role, gemm in gemms.items() if gemm in dropped))


@watched
def estimate(
    model: str | Path,
    *,
    cpu: str,
    arch: str | None = None,
    isa: str | None = None,
    effort: Effort = "quick",
    bytes_per_cycle: float | None = None,
    output: Path | None = None,
    progress: Watch = None,
) -> TuneReport:
    """Choose kernels for a CPU that is not here, by LLVM's model of its core, and save the plan."""
    check_output(output, model)
    shape, arch = shape_of(model), targets.target(isa).arch if isa else arch or targets.host_arch()
    core = cost_model.Core.find(arch, cpu)
    isa = isa or cost_model.level(arch, cpu)
    made = cost_model.estimate_plan(list(shape.all_matrices.values()), isa, core, effort, bytes_per_cycle, progress)
    path = output or plan.path_of(f"estimated {cpu}", isa)
    plan.save(made, path)
    build = shlex.join(["bitgen", "build", "--model", str(model), "--arch", arch, "--plan", str(path)])
    return TuneReport(shape, made, path, build)


@watched
def build(
    model: str | Path,
    *,
    arch: str = "native",
    system: str | None = None,
    isa: str | None = None,
    root: Path = Path("build"),
    progress: Watch = None,
    program: bool = False,
    plans: Sequence[Path] = (),
) -> Artefact:
    """Generate and compile the library (or the runner program) of a model, one ISA level or all of them.

    arch, system: of targets.PLATFORMS; without a system the host's where the architecture is, else Linux.
    plans: files of tuned plans that come before what is known here.
    """
    shape, platform = shape_of(model), _platform(arch, system)
    isas = [isa] if isa else [t.isa for t in targets.levels(platform)]
    given = [plan.for_build(file, shape, isas) for file in plans]
    planned = [plan.of_model(shape, name, given) for name in isas]
    options = BuildOptions(platform, "runner.c" if program else None, root, listener=progress)
    return library.for_model(shape, planned, options)


@watched
def standalone(
    model: str | Path | None = None,
    *,
    arch: str = "native",
    system: str | None = None,
    isa: str | None = None,
    folder: Path = Path("build"),
    one_file: bool = False,
    head: pack.Head = "certified",
    plans: Sequence[Path] = (),
    progress: Watch = None,
    **reading: Any,
) -> _standalone.Program:
    """Write a program that needs nothing else, and its weights: DIR/<model> and DIR/<model>.bgpk.

    arch, system, plans: as of `build`. reading: what the file does not say, as in read_gguf.
    """
    arguments.one_of("head", head, get_args(pack.Head))
    if model is not None:
        arguments.path("model", model)
    source = _local.located(model)
    checkpoint = read_gguf(source, **reading)
    platform = _platform(arch, system)
    levels = _standalone.shared_layout(checkpoint.shape, platform, isa, plans)
    sampling, warning = sampling_of(checkpoint.metadata)
    made = _standalone.write(
        checkpoint, source.stem, folder, platform, *levels, sampling=vars(sampling), one_file=one_file, head=head,
        progress=progress, inputs=checkpoint.files,
    )  # fmt: skip
    return replace(made, warning=warning)


def _platform(arch: str, system: str | None) -> Platform:
    """What the user asks to build for; "native": this host's architecture."""
    return targets.platform_of(None if arch == "native" else arch, system)


# ---- kernels --------------------------------------------------------------------------------------------------


@watched
def kernels(model: str | Path, *, isa: str | None = None, progress: Watch = None) -> list[str]:
    """Symbols of the kernels that a model would run with."""
    shape, isa = shape_of(model), isa or library.host_isa(progress)
    matrices = plan.of_model(shape, isa).matrices
    return list(dict.fromkeys(s.symbol for role, p in matrices.items() for s in p.specs(shape.all_matrices[role], isa)))


def gen(symbol: str, *, asm: bool = False) -> str:
    """The generated C of a kernel named by its symbol, or its assembly."""
    spec = _legal(symbol)
    text = render.render_kernel(spec)
    return clang.assembly(spec.isa, f"{symbol}.c", text) if asm else text


def kernel_cost(symbol: str, cpu: str) -> cost_model.Estimate:
    """What a kernel costs on a CPU by LLVM's model of its core."""
    spec = _legal(symbol)
    arch = targets.target(spec.isa).arch
    return cost_model.estimate(spec, cost_model.Core.find(targets.host_arch() if arch == "any" else arch, cpu))


def _legal(symbol: str) -> KernelSpec:
    """The spec that a symbol spells, or why there is no such kernel."""
    spec = KernelSpec.parse(symbol)
    if spec is None:
        raise UnsupportedError(
            f"{symbol!r} is not a kernel symbol; bitgen gen --model NAME lists those of a model, "
            "like bg_i2_s_gemv_m2560_k2560_bm4_bk128_pf1024__avx2"
        )
    reason = space.legal(spec)
    if reason:
        raise BitgenError(f"{symbol} cannot be generated: {reason}")
    return spec
