"""KernelSpec -> C text, by the Jinja templates of templates/.

A template only spells decisions that were made elsewhere. Its context is the table that `_context` builds: a key that
no line of the template uses is an error, and so is a name that the table lacks.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jinja2
from jinja2 import meta

from bitgen import data, targets
from bitgen.errors import UnsupportedError
from bitgen.kernels.formats import FORMATS
from bitgen.kernels.space import QUAD_COLUMNS, blocks, legal, template_isa, template_row
from bitgen.spec import KernelSpec


class Level(Protocol):
    """What a library holds for one ISA."""

    @property
    def isa(self) -> str:
        """Key of TARGETS."""

    @property
    def kernels(self) -> Sequence[KernelSpec]:
        """Every kernel of the level, each once."""

    @property
    def roles(self) -> Mapping[str, tuple[KernelSpec, KernelSpec]]:
        """Role -> its decode and prefill kernel; empty for a bare kernel set."""

    @property
    def ops(self) -> bool:
        """Whether it has the float operations; without them it only says whether it runs."""

    @property
    def layout_key(self) -> str:
        """What a packed model must carry to run here."""


@functools.lru_cache(maxsize=64)  # a start asks twice: whether a plan is for these kernels, and what to build
def render_kernel(spec: KernelSpec) -> str:
    """The C source of one kernel; UnsupportedError when the spec is illegal. The same spec gives the same bytes."""
    reason = legal(spec)
    if reason:
        raise UnsupportedError(f"{spec.symbol}: {reason}")
    return _render(template_of(spec), _context(spec))


_STRING_OR_COMMENT = re.compile(r'"(?:\\.|[^"\\])*"|//[^\n]*|/\*.*?\*/', re.DOTALL)


def kernel_code(spec: KernelSpec) -> str:
    """The C of one kernel without comments and with the least white space: kernels are the same when their code is.

    Of other files, like kernel.h, it has but the names.
    """
    text = _STRING_OR_COMMENT.sub(lambda found: found[0] if found[0].startswith('"') else " ", render_kernel(spec))
    text = " ".join(text.split())
    for bracket in "()[]{},;":
        text = text.replace(f" {bracket}", bracket).replace(f"{bracket} ", bracket)
    return text


def render_probe(isa: str) -> str:
    """The C source of `int32_t bg_probe__<isa>(void)`, which executes the level's instructions on data."""
    return _render(f"probe/{targets.target(isa).isa}.c.j2", {"isa": isa})


def render_registry(levels: Sequence[Level]) -> str:
    """registry.c: `bg_isas[]`, the ISA levels of a library best first, with their kernels and role bindings."""
    table = [
        {
            "isa": level.isa,
            "layout": level.layout_key,
            "ops": level.ops,
            "kernels": [spec.symbol for spec in level.kernels],
            "roles": [(f"BG_{role.upper()}", *(spec.symbol for spec in pair)) for role, pair in level.roles.items()],
        }
        for level in levels
    ]
    symbols = sorted({spec.symbol for level in levels for spec in level.kernels})
    return _render("registry.c.j2", {"levels": table, "symbols": symbols})


def template_of(spec: KernelSpec) -> str:
    """Name of the template that serves a spec: its ISA's own, or the nearest below it."""
    return f"{spec.layout.format}/{template_isa(spec.layout.format, spec.isa)}.c.j2"


def _context(spec: KernelSpec) -> dict[str, Any]:
    """Everything a kernel template may name."""
    geometry, sizes = FORMATS[spec.layout.format].geometry(spec.shape, spec.layout), blocks(spec)
    context = {
        "symbol": spec.symbol,
        "template": template_of(spec),
        "op": spec.op,
        "isa": spec.isa,
        "layout": str(spec.layout),
        "m": spec.shape.m,
        "k": spec.shape.k,
        "bm": spec.layout.bm,
        "bk": spec.layout.bk,
        "lut_groups": spec.tile.lut_groups,
        "prefetch": spec.tile.prefetch,
        "m_pad": geometry.m_pad,
        "k_pad": geometry.k_pad,
        "panels": geometry.panels,
        "weight_bytes": geometry.weight_bytes,
        "operand_bytes": geometry.operand_bytes,
        "table_rows": sizes.table_rows,
    }
    context |= {name: size for name, size in dataclasses.asdict(sizes).items() if size}
    template = template_row(spec)
    if template.int16_columns:
        context["int16_columns"] = template.int16_columns
    if template.lanes:
        context |= {"lanes": template.lanes, "lut_columns": QUAD_COLUMNS, "mixed": spec.tile.mixed}
    return context


def _render(name: str, context: Mapping[str, Any]) -> str:
    """Render one template, having checked that it and its context fit."""
    used = _names(name)
    if used != set(context):
        raise AssertionError(
            f"template {name}: names without a value {sorted(used - set(context))}, "
            f"values without a use {sorted(set(context) - used)}"
        )
    return _environment().get_template(name).render(context)


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(data.folder("templates")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )


@functools.cache
def _names(name: str) -> set[str]:
    """The context keys that a template and those it includes or imports use."""
    env = _environment()
    assert env.loader is not None
    tree = env.parse(env.loader.get_source(env, name)[0])
    found = set(meta.find_undeclared_variables(tree))
    for other in meta.find_referenced_templates(tree):
        if other is not None:
            found |= _names(other)
    return found
