"""Parts of templates state what they need and give, and the C that is rendered holds them to it.

    {# needs: decode(w, c), VB;
       gives: products(w, operand, n, y, p0, p1);
       keys: mc, nr #}

needs: names of C that the part uses and others define; the sizes that a macro gives every kernel go without saying.
gives: names that it defines and others use. keys: what it takes from the context. Arguments may be left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache

import jinja2
import pytest
from jinja2 import meta

from bitgen.kernels import render, space
from bitgen.kernels.formats import FORMATS
from bitgen.spec import GemmShape, KernelSpec, Layout, Op

MACROS = "shared/macros.j2"
SIZES = f"{MACROS}:sizes"
OPS: tuple[Op, ...] = ("gemv", "gemm")
NAME = re.compile(r"[A-Za-z_]\w*")
NOT_TYPES = {"const", "static", "inline", "return", "else", "case", "sizeof", "typedef", "struct", "enum"}

Names = dict[str, int | None]  # name -> a function's number of parameters; None: not known, or no function


@dataclass
class Part:
    """What a part of templates needs and gives, as stated or as found."""

    needs: Names = field(default_factory=dict)
    gives: Names = field(default_factory=dict)
    keys: Names = field(default_factory=dict)


@cache
def sources() -> dict[str, str]:
    """Name -> text of every kernel template and of their parts."""
    environment = render._environment()
    assert environment.loader is not None
    names = [name for name in environment.list_templates() if name.partition("/")[0] in {"shared", *FORMATS}]
    return {name: environment.loader.get_source(environment, name)[0] for name in names}


@cache
def parts() -> tuple[str, ...]:
    """Every template that is not a level's, and every macro."""
    levels = {f"{format}/{isa}.c.j2" for format, isa in space.TEMPLATES}
    macros = re.findall(r"\{% macro (\w+)", sources()[MACROS])
    return (*sorted(sources().keys() - levels - {MACROS}), *(f"{MACROS}:{macro}" for macro in macros))


def text_of(part: str, texts: Mapping[str, str]) -> str:
    """A part as it is written, from its contract on."""
    name, _, macro = part.partition(":")
    whole = r"(?:\{# \w+:(?:(?!#\}).)*#\}\n)?\{% macro " + macro + r"\(.*?\{% endmacro %\}\n"
    found = re.search(whole, texts[name], re.DOTALL) if macro else None
    return found[0] if found else texts[name]


def stated(part: str) -> Part:
    """A part's contract."""
    found = re.match(r"\{# (\w+: .*?) #\}\n", text_of(part, sources()), re.DOTALL)
    assert found is not None, f"{part} does not open with its contract"
    result = Part()
    for clause in found[1].split(";"):
        label, names = clause.split(":")
        for name, arguments in re.findall(r"(\w+)(\([^)]*\))?", names):
            getattr(result, label.strip())[name] = arguments.count(",") + 1 if arguments else None
    return result


def specs(levels: Iterable[tuple[str, str]]) -> Iterator[KernelSpec]:
    """A kernel of each of some templates for every kind of tile."""
    for format, isa in levels:
        template = space.TEMPLATES[format, isa]
        layout = Layout(format, template.bm[0], template.bk[0])
        shape = GemmShape(960, 1920, layout.bk if FORMATS[format].grouped else 0, FORMATS[format].binary)
        for op in OPS:
            tiles = space.candidate_tiles(op, shape, isa, layout, thorough=True)
            kinds = {(tile.prefetch > 0, tile.lut_groups, tile.mixed): tile for tile in tiles}
            yield from (KernelSpec(op, shape, isa, layout, tile) for tile in kinds.values())


def marked(name: str, text: str) -> str:
    """A template whose rendered text tells where parts begin and end."""
    if name == MACROS:
        text = re.sub(r"(\{% macro (\w+)\(.*\n)", rf"\1// begin {MACROS}:\2\n", text)
        return text.replace("{% endmacro %}", "// end\n{% endmacro %}")
    return f"// begin {name}\n{text}// end\n" if name in parts() else text


def declarations(text: str) -> Iterator[tuple[str, str]]:
    """The part and the text of each declaration of a kernel, without comments and strings; of its level: part ""."""
    stack, lines = [""], list[str]()
    for line in text.splitlines():
        if marker := re.fullmatch(r"// (begin|end) ?(.*)", line):
            stack = [*stack, marker[2]] if marker[1] == "begin" else stack[:-1]
            continue
        line = re.sub(r'"[^"]*"', '""', re.sub(r"^#.*|//.*", "", line)).rstrip()
        lines += [line] if line else []
        declaration = "\n".join(lines)
        if lines and declaration.count("{") == declaration.count("}") and line.endswith((";", "}")):
            yield stack[-1], declaration
            lines = []


def defined(declaration: str) -> Names:
    """The names that a declaration at the top defines; a prototype defines none."""
    plain = re.sub(r" __attribute__\(\((?:[^()]|\([^()]*\))*\)\)", "", declaration)
    if function := re.match(r"static [^;={}(]*?(\w+)\(([^;{]*)\) \{", plain):
        return {function[1]: function[2].count(",") + 1}
    if plain.startswith("typedef"):
        plain = re.sub(r"\{.*\}|\[[^]]*\]", "", plain, flags=re.DOTALL)
        return dict.fromkeys((NAME.findall(one)[-1] for one in plain.split(",")), None)
    names = re.findall(r"[{,]\s*(\w+)", plain) if plain.startswith("enum") else []
    return dict.fromkeys(names or re.findall(r"^static const \w+ (\w+)\[", plain), None)


def used(declaration: str) -> set[str]:
    """The names in a declaration that are no members and not declared within."""
    names, local = set(), set()
    for found in NAME.finditer(declaration):
        before, after = declaration[: found.start()], declaration[found.end() :]
        if before.endswith((".", "->")):
            continue
        typed = re.search(r"([A-Za-z_]\w*) $", before)
        declares = (
            (typed and typed[1] not in NOT_TYPES)  # int32_t name
            or re.search(r"[\w)] \*(const )?$", before)  # uint8_t *name
            or (re.search(r",\s+\*?$", before) and re.match(r"(\[\w+\])* = ", after))  # int32_t other = 0, name = 1
            or before.endswith("enum { ")
        )
        (local if declares else names).add(found[0])
    return names - local


def found(levels: Iterable[tuple[str, str]], edit: Callable[[str], str] = lambda text: text) -> dict[str, Part]:
    """What every part needs and gives, by the kernels that are rendered from some levels' templates as edited."""
    texts = {name: edit(text) for name, text in sources().items()}
    environment = render._environment.__wrapped__()
    environment.loader = jinja2.FunctionLoader(lambda name: marked(name, texts[name]))
    result = {part: Part() for part in parts()}
    for part in parts():
        keys = meta.find_undeclared_variables(environment.parse(text_of(part, texts)))
        result[part].keys = dict.fromkeys(keys, None)
    for spec in specs(levels):
        text = environment.get_template(render.template_of(spec)).render(render._context(spec))
        kernel = list(declarations(text))
        homes = {name: (part, arity) for part, one in kernel for name, arity in defined(one).items()}
        for part, one in kernel:
            for name in used(one) & homes.keys():
                home, arity = homes[name]
                if home != part and part and home != SIZES:
                    result[part].needs[name] = arity
                if home != part and home:
                    result[home].gives[name] = arity
    return result


def differences(stated: Part, found: Part) -> list[str]:
    """How a contract and the text of its part differ."""
    result = []
    for label, says, has in (
        ("needs", stated.needs, found.needs),
        ("gives", stated.gives, found.gives),
        ("keys", stated.keys, found.keys),
    ):
        result += [f"{label}: {name} is not stated" for name in sorted(has.keys() - says.keys())]
        result += [f"{label}: {name} is stated in vain" for name in sorted(says.keys() - has.keys())]
        wrong = [name for name in says.keys() & has.keys() if says[name] not in (None, has[name])]
        result += [f"{label}: {name} has {has[name]} parameters" for name in sorted(wrong)]
    return result


@pytest.fixture(scope="module")
def truth() -> dict[str, Part]:
    return found(space.TEMPLATES)


@pytest.mark.parametrize("part", parts())
def test_a_part_needs_and_gives_what_it_states(truth: dict[str, Part], part: str) -> None:
    assert not differences(stated(part), truth[part])


@pytest.mark.parametrize(
    ("part", "old", "new", "difference"),
    [
        ("shared/products.c.j2", "x += HEADER + k0;", "x += HEADER + k0 % SPAN;", "needs: SPAN is not stated"),
        ("shared/products.c.j2", "= operand_sum(", "= *(", "needs: operand_sum is stated in vain"),
        ("shared/products.c.j2", "MC = {{ mc }}", "MC = {{ kc }}", "keys: mc is stated in vain"),
        (
            "shared/operand.c.j2",
            "operand_sum(const",
            "operand_sum(int32_t n, const",
            "gives: operand_sum has 2 parameters",
        ),
        ("t5/parts.c.j2", "add_rows(", "gain_rows(", "gives: gain_rows is not stated"),
    ],
)
def test_an_edited_part_breaks_its_contract(part: str, old: str, new: str, difference: str) -> None:
    level = [("t5" if part.startswith("t5") else "i2_s", "avx2")]
    assert old in text_of(part, sources())
    assert difference not in differences(stated(part), found(level)[part])
    assert difference in differences(stated(part), found(level, lambda text: text.replace(old, new))[part])
