"""The scalar instructions of AArch64."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from bitgen.errors import BitgenError
from bitgen.tune.trace.machine import Flags, Machine, Step, Value, divide, logic_flags, mask, signed, sum_flags

COMMENT = r"//"
JUMP = re.compile(r"(b|br|b\.\w+|cbn?z|tbn?z|bl|blr|ret)\b")

Read = Callable[[Machine], Value]

# Name -> result of the source operands, all unsigned, at a width of n bits.
_ARITHMETIC: dict[str, Callable[..., int]] = {
    "mov": lambda n, a: a,
    "mvn": lambda n, a: ~a,
    "neg": lambda n, a: -a,
    "add": lambda n, a, b: a + b,
    "sub": lambda n, a, b: a - b,
    "and": lambda n, a, b: a & b,
    "orr": lambda n, a, b: a | b,
    "eor": lambda n, a, b: a ^ b,
    "bic": lambda n, a, b: a & ~b,
    "orn": lambda n, a, b: a | ~b,
    "lsl": lambda n, a, b: a << b % n,
    "lsr": lambda n, a, b: a >> b % n,
    "asr": lambda n, a, b: signed(a, n) >> b % n,
    "mul": lambda n, a, b: a * b,
    "mneg": lambda n, a, b: -a * b,
    "madd": lambda n, a, b, c: c + a * b,
    "msub": lambda n, a, b, c: c - a * b,
    "smull": lambda n, a, b: signed(a, 32) * signed(b, 32),
    "umull": lambda n, a, b: a * b,
    "smaddl": lambda n, a, b, c: c + signed(a, 32) * signed(b, 32),
    "umaddl": lambda n, a, b, c: c + a * b,
    "smsubl": lambda n, a, b, c: c - signed(a, 32) * signed(b, 32),
    "umsubl": lambda n, a, b, c: c - a * b,
    "smnegl": lambda n, a, b: -signed(a, 32) * signed(b, 32),
    "umnegl": lambda n, a, b: -a * b,
    "smulh": lambda n, a, b: signed(a, 64) * signed(b, 64) >> 64,
    "umulh": lambda n, a, b: a * b >> 64,
    "sdiv": lambda n, a, b: divide(signed(a, n), signed(b, n)) if b else 0,
    "udiv": lambda n, a, b: a // b if b else 0,
    "sxtb": lambda n, a: signed(a, 8),
    "sxth": lambda n, a: signed(a, 16),
    "sxtw": lambda n, a: signed(a, 32),
    "uxtb": lambda n, a: mask(a, 8),
    "uxth": lambda n, a: mask(a, 16),
    "uxtw": lambda n, a: mask(a, 32),
    "ubfx": lambda n, a, low, width: mask(a >> low, width),
    "sbfx": lambda n, a, low, width: signed(a >> low, width),
    "ubfiz": lambda n, a, low, width: mask(a, width) << low,
    "sbfiz": lambda n, a, low, width: signed(a, width) << low,
}
# These also read their destination, as `d`.
_INSERTING: dict[str, Callable[..., int]] = {
    "movk": lambda n, d, a, low=0: d & ~(0xFFFF << low) | a << low,
    "bfi": lambda n, d, a, low, width: d & ~(mask(-1, width) << low) | mask(a, width) << low,
    "bfxil": lambda n, d, a, low, width: d & ~mask(-1, width) | mask(a >> low, width),
}
# Flag setters -> (operation of the result, flags).
_FLAGS: dict[str, tuple[str, Callable[[int, int, int], Flags]]] = {
    "adds": ("add", lambda n, a, b: sum_flags(a, b, n)),
    "subs": ("sub", lambda n, a, b: sum_flags(a, ~b, n, 1)),
    "ands": ("and", lambda n, a, b: logic_flags(a & b, n)),
    "bics": ("bic", lambda n, a, b: logic_flags(a & ~b, n)),
}
_COMPARISONS = {"cmp": "subs", "cmn": "adds", "tst": "ands"}  # results go to the zero register
# Conditional selects -> result of the second source, when the condition does not hold.
_OTHERWISE: dict[str, Callable[[int], int]] = {
    "csel": lambda b: b,
    "csinc": lambda b: b + 1,
    "csinv": lambda b: ~b,
    "csneg": lambda b: -b,
}
# Aliases -> full name, operands between destination and condition; the condition is inverted.
_ALIASES: dict[str, tuple[str, Callable[[str], tuple[str, str]]]] = {
    "cset": ("csinc", lambda _: ("xzr", "xzr")),
    "csetm": ("csinv", lambda _: ("xzr", "xzr")),
    "cinc": ("csinc", lambda a: (a, a)),
    "cinv": ("csinv", lambda a: (a, a)),
    "cneg": ("csneg", lambda a: (a, a)),
}
_CONDITIONS: dict[str, Callable[[Flags], bool]] = {
    "eq": lambda f: f.z,
    "hs": lambda f: f.c,
    "mi": lambda f: f.n,
    "vs": lambda f: f.v,
    "hi": lambda f: f.c and not f.z,
    "ge": lambda f: f.n == f.v,
    "gt": lambda f: not f.z and f.n == f.v,
}
_OPPOSITES = {"ne": "eq", "lo": "hs", "pl": "mi", "vc": "vs", "ls": "hi", "lt": "ge", "le": "gt"}
_LOADS = {"b": (1, False), "h": (2, False), "sb": (1, True), "sh": (2, True), "sw": (4, True)}


def call(machine: Machine, stack: int, arguments: Sequence[int]) -> None:
    """Pass arguments to the function that the trace begins with: all in registers."""
    machine.registers |= {f"x{i}": value for i, value in enumerate(arguments)} | {"sp": stack}


def decode(line: str, labels: Mapping[str, int], after: int) -> Step | None:
    """The step of an instruction; None when it changes no scalar state."""
    name, _, rest = line.partition(" ")
    operands = [part.strip() for part in re.split(r",(?![^\[{]*[\]}])", rest)] if rest else []
    if JUMP.match(line):
        return _jump(name, operands, labels, after)
    if name[:2] in ("ld", "st"):
        return _transfer(name, operands, labels)
    name, operands = _in_full(name, operands)
    if name in ("ccmp", "ccmn"):
        return _conditional_comparison(name, operands, labels)
    if name in _OTHERWISE:
        return _choice(name, operands, labels)
    if not operands or not _is_register(operands[0]):
        return None
    target, n = operands[0], _bits(operands[0])
    if name in ("adrp", "adr"):
        address = labels.get(operands[1], 0)
        return lambda m: _write(m, target, address)
    if name in _INSERTING:
        reads = [_read(x.removeprefix("lsl "), labels) for x in operands]
        return _computed(target, n, _INSERTING[name], reads)
    if name in _ARITHMETIC:
        return _computed(target, n, _ARITHMETIC[name], _sources(operands[1:], labels))
    if name in _FLAGS:
        plain, flags = _FLAGS[name]
        reads = _sources(operands[1:], labels)
        result = _computed(target, n, _ARITHMETIC[plain], reads)

        def step(m: Machine) -> None:
            a, b = (read(m) for read in reads)
            m.flags = None if a is None or b is None else flags(n, a, b)
            result(m)

        return step
    return lambda m: _write(m, target, None)


def _in_full(name: str, operands: list[str]) -> tuple[str, list[str]]:
    """The instruction that an alias stands for, with its operands; any other as it is."""
    if name in _COMPARISONS:
        return _COMPARISONS[name], ["wzr" if operands[0][0] == "w" else "xzr", *operands]
    if name == "negs":
        return "subs", [operands[0], "xzr", *operands[1:]]
    if name in _ALIASES:
        full, between = _ALIASES[name]
        opposite = {**_OPPOSITES, **{v: k for k, v in _OPPOSITES.items()}}[operands[-1]]
        return full, [operands[0], *between(operands[1]), opposite]
    return name, operands


def _is_register(operand: str) -> bool:
    return re.fullmatch(r"[xw]\d+|[xw]zr|w?sp", operand) is not None


def _bits(register: str) -> int:
    return 32 if register[0] == "w" else 64


def _write(m: Machine, register: str, value: Value) -> None:
    """A 32-bit result clears the upper half."""
    if register[1:] != "zr":
        m.registers[register.replace("w", "x").replace("xsp", "sp")] = (
            None if value is None else mask(value, _bits(register))
        )


def _read(operand: str, labels: Mapping[str, int]) -> Read:
    """An operand's value, unsigned, at its own width."""
    if operand[1:] == "zr":
        return lambda m: 0
    if _is_register(operand):
        wide, n = operand.replace("w", "x").replace("xsp", "sp"), _bits(operand)

        def read(m: Machine) -> Value:
            value = m.registers.get(wide)
            return None if value is None else mask(value, n)

        return read
    if operand.startswith(":lo12:"):
        return lambda m: 0  # adrp has given the whole address
    number = int(operand.lstrip("#"), 0) if re.fullmatch(r"#?-?(0x)?[0-9a-f]+", operand) else None
    return lambda m: number  # None: an element of a vector


def _sources(operands: Sequence[str], labels: Mapping[str, int]) -> list[Read]:
    """Source operands; a shift or extension at the end applies to the operand before it."""
    found = re.fullmatch(r"([a-z]+)(?: #(\d+))?", operands[-1]) if len(operands) > 1 else None
    if found is None or found[1] not in _ARITHMETIC:
        return [_read(operand, labels) for operand in operands]
    return [*(_read(x, labels) for x in operands[:-2]), _shifted(operands[-2], found[1], int(found[2] or 0), labels)]


def _shifted(operand: str, shift: str, amount: int, labels: Mapping[str, int]) -> Read:
    """A register shifted (lsl, lsr, asr) or extended and then shifted left (sxtw, uxtw, ...)."""
    source, n, change = _read(operand, labels), _bits(operand), _ARITHMETIC[shift]

    def read(m: Machine) -> Value:
        value = source(m)
        if value is None:
            return None
        return mask(change(n, value, amount), n) if shift in ("lsl", "lsr", "asr") else change(n, value) << amount

    return read


def _computed(target: str, n: int, operation: Callable[..., int], reads: Sequence[Read]) -> Callable[[Machine], None]:
    def step(m: Machine) -> None:
        values = [read(m) for read in reads]
        _write(m, target, None if None in values else operation(n, *values))

    return step


def _holds(m: Machine, condition: str) -> bool | None:
    if m.flags is None:
        return None
    name = _OPPOSITES.get(condition, condition)
    return _CONDITIONS[name](m.flags) == (name == condition)


def _choice(name: str, operands: Sequence[str], labels: Mapping[str, int]) -> Step:
    target, *sources, condition = operands
    (first, second), otherwise = (_read(x, labels) for x in sources), _OTHERWISE[name]

    def step(m: Machine) -> None:
        holds = _holds(m, condition)
        value = first(m) if holds else second(m)
        _write(m, target, None if holds is None or value is None else value if holds else otherwise(value))

    return step


def _conditional_comparison(name: str, operands: Sequence[str], labels: Mapping[str, int]) -> Step:
    *sources, flags, condition = operands
    reads, n, otherwise = [_read(x, labels) for x in sources], _bits(sources[0]), int(flags.lstrip("#"), 0)
    compare = _FLAGS["subs" if name == "ccmp" else "adds"][1]

    def step(m: Machine) -> None:
        holds, (a, b) = _holds(m, condition), (read(m) for read in reads)
        if holds is False:
            m.flags = Flags(*(bool(otherwise >> i & 1) for i in (3, 2, 1, 0)))
        else:
            m.flags = None if holds is None or a is None or b is None else compare(n, a, b)

    return step


def _transfer(name: str, operands: Sequence[str], labels: Mapping[str, int]) -> Step | None:
    """Loads and stores of scalars; of vectors only the update of the base register."""
    place = next(i for i, x in enumerate(operands) if x[0] == "[")
    inside = [x.strip() for x in operands[place].strip("[]!").split(",")]
    base, offset = _read(inside[0], labels), _sum(inside[1:], labels)
    behind = _read(operands[place + 1], labels) if len(operands) > place + 1 else None
    before = operands[place].endswith("!")
    registers = [x for x in operands[:place] if _is_register(x)]
    found = re.fullmatch(r"(ld|st)u?r(s?[bhw])?|(ld|st)p(sw)?", name)
    size, extend = _LOADS.get((found[2] or found[4] or "") if found else "", (0, False))

    def step(m: Machine) -> None:
        at, by = base(m), offset(m)
        address = None if at is None or by is None else at + by
        for i, register in enumerate(registers):
            width = size or _bits(register) // 8
            where = None if address is None else address + i * width
            if name.startswith("st"):
                m.store(where, width, _read(register, labels)(m))
            else:
                value = m.load(where, width) if found else None
                _write(m, register, signed(value, 8 * width) if extend and value is not None else value)
        if before:
            _write(m, inside[0], address)
        elif behind is not None:
            step_by = behind(m)
            _write(m, inside[0], None if at is None or step_by is None else at + step_by)

    return step if registers or before or behind is not None else None


def _sum(parts: Sequence[str], labels: Mapping[str, int]) -> Read:
    """The offset of an address from its base."""
    return _sources(parts, labels)[0] if parts else lambda m: 0


def _jump(name: str, operands: Sequence[str], labels: Mapping[str, int], after: int) -> Step | None:
    if name == "ret":
        return lambda m: m.returns.pop() if m.returns else 0
    if name in ("bl", "blr"):
        if name == "blr" or operands[0] not in labels:
            return None  # memcpy, memset: they return x0
        return lambda m: m.returns.append(after) or labels[operands[0]]  # type: ignore[func-returns-value]
    if name == "br":
        target = _read(operands[0], labels)
        return lambda m: _known(target(m), name, operands)
    if name == "b":
        return (lambda m: labels[operands[0]]) if operands[0] in labels else _tail_call
    to = labels[operands[-1]]
    if name.startswith("b."):
        return lambda m: to if _known(_holds(m, name[2:]), name, operands) else None
    source, bit = _read(operands[0], labels), int(operands[1].lstrip("#"), 0) if name[0] == "t" else None
    wanted = name.endswith("nz")

    def step(m: Machine) -> int | None:
        value = _known(source(m), name, operands)
        return to if bool(value if bit is None else value >> bit & 1) == wanted else None

    return step


def _tail_call(m: Machine) -> int:
    """A jump to a function of libc, which returns to our caller."""
    return m.returns.pop() if m.returns else 0


def _known(value: Value, name: str, operands: Sequence[str]) -> int:
    if value is None:
        raise BitgenError(f"cannot tell where `{name} {', '.join(operands)}` goes: it depends on data")
    return value
