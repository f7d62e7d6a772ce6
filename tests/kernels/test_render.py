"""Rendered C: golden text, the rules of the header, formatting, the check of contexts, the registry.

`BITGEN_UPDATE_GOLDEN=1 pytest tests/kernels/test_render.py` rewrites the golden files.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import places
import pytest

from bitgen import data
from bitgen.errors import UnsupportedError
from bitgen.kernels import render, space
from bitgen.kernels.formats import FORMATS
from bitgen.spec import ROLES, GemmShape, KernelSpec, Layout, Op, Tile, round_up
from bitgen.targets import TARGETS

GOLDEN = places.GOLDEN
TEMPLATES = list(space.TEMPLATES)
DOWN = GemmShape(2560, 6912)
OPS: tuple[Op, ...] = ("gemv", "gemm")
KERNELS = [(format, isa, op) for format, isa in TEMPLATES for op in OPS]
REPEATED = {
    *((format, isa, "gemv") for format in ("i2_s", "t5") for isa in ("amx", "i8mm")),
    ("i2_g", "i8mm", "gemv"),
    ("t5_g", "avx512vbmi", "gemm"),
}
"""Kernels that are those of a lower level under another name: one golden text shows both."""


def example(format: str, isa: str, op: Op, shape: GemmShape = DOWN) -> KernelSpec:
    template = space.TEMPLATES[format, isa]
    layout = Layout(format, template.bm[0], template.bk[0])
    if FORMATS[format].grouped:
        shape = GemmShape(shape.m, round_up(shape.k, layout.bk), layout.bk)
    shape = dataclasses.replace(shape, binary=FORMATS[format].binary)
    return KernelSpec(op, shape, isa, layout, space.candidate_tiles(op, shape, isa, layout)[0])


def smallest(format: str, isa: str, op: Op) -> KernelSpec:
    """A kernel in which every loop of its template turns, of few rows, columns and tokens."""
    template = space.TEMPLATES[format, isa]
    bm, bk = template.bm[0], template.bk[-1]
    k = bk + 32 if format == "tl2" else 2 * bk  # tl2: triples, and the rest in pairs
    if op == "gemv":
        tile, rows = Tile(prefetch=min(2048, template.prefetch[0])), bm
    else:
        nr = min((nr for nr in template.nr if nr > 1), default=1)
        mixed, lut_groups = max(template.mixed), max(template.lut_groups)
        tile = Tile(nr, bk if template.kc else 0, lut_groups=lut_groups, mixed=mixed)
        rows = max(bm, template.mr, mixed * space.MIXED_ROWS)
    shape = GemmShape(2 * rows - 1, k, bk if FORMATS[format].grouped else 0, FORMATS[format].binary)
    return KernelSpec(op, shape, isa, Layout(format, bm, bk), tile)


@dataclass(frozen=True)
class Level:
    isa: str
    kernels: tuple[KernelSpec, ...]
    roles: dict[str, tuple[KernelSpec, KernelSpec]]
    layout_key: str
    ops: bool = True


def level(isa: str, bound: bool) -> Level:
    shape = GemmShape(300, 1000)
    specs = space.default_plan(shape, isa).specs(shape, isa)
    return Level(isa, specs, dict.fromkeys(ROLES, specs) if bound else {}, "qkv=some" if bound else "")


def all_texts() -> dict[str, str]:
    """Every kind of file that is rendered."""
    texts = {f"probe__{isa}.c": render.render_probe(isa) for isa in TARGETS}
    texts["registry.c"] = render.render_registry([level("avx2", True), level("scalar", False)])
    for format, isa in TEMPLATES:
        for op in OPS:
            shapes = (DOWN, GemmShape(1, 1), GemmShape(128256, 23040))
            for spec in (smallest(format, isa, op), *(example(format, isa, op, shape) for shape in shapes)):
                texts[f"{spec.symbol}.c"] = render.render_kernel(spec)
    return texts


def test_there_is_a_row_for_every_template_file() -> None:
    folder = data.folder("templates")
    files = {
        (p.parent.name, p.name.removesuffix(".c.j2"))
        for format in FORMATS
        for p in (folder / format).glob("*.c.j2")
        if p.name.removesuffix(".c.j2") in TARGETS
    }
    assert files == set(TEMPLATES)
    assert {p.name.removesuffix(".c.j2") for p in (folder / "probe").iterdir()} == set(TARGETS)


GOLDENS = {"-".join((kernel[0], kernel[2], kernel[1])) + ".c": kernel for kernel in KERNELS if kernel not in REPEATED}


@pytest.mark.parametrize("name", GOLDENS)
def test_golden_text(name: str) -> None:
    text = render.render_kernel(smallest(*GOLDENS[name]))
    path = GOLDEN / name
    if os.environ.get("BITGEN_UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text(), f"{path.name} changed; BITGEN_UPDATE_GOLDEN=1 accepts the new text"


def test_each_golden_text_shows_another_kernel() -> None:
    assert {path.name for path in GOLDEN.iterdir()} == {*GOLDENS, "registry.c"}
    same: dict[str, list[tuple[str, str, Op]]] = {}
    for kernel in KERNELS:  # of each format best first
        spec = smallest(*kernel)
        same.setdefault(render.kernel_code(spec).replace(spec.symbol, kernel[2]), []).append(kernel)
    assert {kernel for kernels in same.values() for kernel in kernels[:-1]} == REPEATED


def test_golden_registry() -> None:
    text = render.render_registry([level("avx2", True), level("scalar", False)])
    path = GOLDEN / "registry.c"
    if os.environ.get("BITGEN_UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("format", "isa"), TEMPLATES, ids=map("-".join, TEMPLATES))
def test_the_text_explains_itself(format: str, isa: str, op: Op) -> None:
    spec = example(format, isa, op)
    text = render.render_kernel(spec)
    first, *head = text.split("#include", 1)[0].splitlines()
    assert first == f"// {spec.symbol}"
    assert f"//   bitgen gen {spec.symbol}" in head
    assert render.template_of(spec) in "\n".join(head) and str(spec.layout) in "\n".join(head)
    assert "_Static_assert" in text and re.search(r"enum { M = \d+, K = \d+", text)
    assert not re.search(r"/(home|root|tmp|work|usr)/|20\d\d-\d\d", text), "a path or a date"
    assert set(re.findall(r"#include (.*)", text)) <= {
        '"kernel.h"', "<string.h>", "<immintrin.h>", "<arm_neon.h>"
    }  # fmt: skip
    globals_ = re.findall(r"^(?!static|typedef|enum|_Static|const bg_kernel|extern)[a-z][^\n]*[({]$", text, re.M)
    assert not globals_, f"not static: {globals_}"
    assert text == render.render_kernel.__wrapped__(spec)


def test_clang_format_finds_nothing_to_do(tmp_path: Path) -> None:
    """In what is generated, and in the runtime."""
    tool = shutil.which("clang-format")
    if tool is None:
        pytest.skip("no clang-format here (apt-get install clang-format)")
    for name, text in all_texts().items():
        (tmp_path / name).write_text(text)
    style = places.REPO / ".clang-format"
    files = sorted(map(str, [*tmp_path.glob("*.c"), *data.folder("runtime").rglob("*.[ch]")]))
    command = [tool, f"--style=file:{style}", "--dry-run", "-Werror", *files]
    out = subprocess.run(command, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr[:4000]


def test_templates_fall_back_along_the_levels() -> None:
    spec = example("tl2", "avx2", "gemv")
    assert render.template_of(dataclasses.replace(spec, isa="avx512vnni")) == "tl2/avx2.c.j2"
    assert render.template_of(dataclasses.replace(spec, isa="neon")) == "tl2/scalar.c.j2"


def test_an_illegal_spec_is_refused_with_its_reason() -> None:
    spec = dataclasses.replace(example("i2_s", "avx2", "gemm"), tile=Tile(nr=8, kc=100))
    with pytest.raises(UnsupportedError, match=r"kc must be 0 or.* a multiple of bk=128"):
        render.render_kernel(spec)


def test_contexts_fit_their_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that no line uses and a name without a value are both errors."""
    spec = example("i2_s", "avx2", "gemm")
    context = render._context(spec)
    monkeypatch.setattr(render, "render_kernel", render.render_kernel.__wrapped__)
    monkeypatch.setattr(render, "_context", lambda _: context | {"unroll": 4})
    with pytest.raises(AssertionError, match=r"values without a use \['unroll'\]"):
        render.render_kernel(spec)
    monkeypatch.setattr(render, "_context", lambda _: {k: v for k, v in context.items() if k != "bm"})
    with pytest.raises(AssertionError, match=r"names without a value \['bm'\]"):
        render.render_kernel(spec)


def test_the_code_of_a_kernel_is_its_text_without_comments_and_white_space(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        '// one "\nint f(char *s, /* of\n two */ int n) {\n  return  g( "a  // \\" b",\n          n - -1 ); // "c"\n}\n'
    )
    monkeypatch.setattr(render, "render_kernel", lambda spec: text)
    code = render.kernel_code(example("i2_s", "avx2", "gemv"))
    assert code == r"""int f(char *s,int n){return g("a // \" b",n - -1);}"""


def test_the_registry_lists_levels_best_first() -> None:
    text = render.render_registry([level("avx2", True), level("scalar", False)])
    assert re.findall(r"&isa__(\w+)", text) == ["avx2", "scalar"]
    assert text.index("&isa__scalar") < text.index("    NULL,")
    assert text.count(".gemv[BG_") == 4 == text.count(".gemm[BG_")
    assert "bg_ops__avx2" in text and "bg_probe__scalar" in text and '"qkv=some"' in text


def test_a_registry_of_probes_alone_names_no_operations() -> None:
    text = render.render_registry([Level("avx2", (), {}, "", ops=False)])
    assert "bg_probe__avx2" in text and "bg_ops" not in text and ".ops" not in text
