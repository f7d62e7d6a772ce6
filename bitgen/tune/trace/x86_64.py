"""The scalar instructions of x86-64, in AT&T syntax."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from bitgen.errors import BitgenError
from bitgen.tune.trace.machine import Flags, Machine, Step, Value, divide, logic_flags, mask, signed, sum_flags

COMMENT = r"#"
JUMP = re.compile(r"(j\w+|callq?|retq?)\b")

Read = Callable[[Machine], Value]
Write = Callable[[Machine, Value], None]

LOW = ".low"
"""Suffix of a register's name: its low eight bits, for when these are known and the others may not be."""

_WIDTHS = {"b": 8, "w": 16, "l": 32, "q": 64}
_REGISTERS = {
    name: (f"r{x}x", bits)
    for x in "abcd"
    for name, bits in ((f"r{x}x", 64), (f"e{x}x", 32), (f"{x}x", 16), (f"{x}l", 8))
}
_REGISTERS |= {
    name: (f"r{x}", bits)
    for x in ("si", "di", "bp", "sp")
    for name, bits in ((f"r{x}", 64), (f"e{x}", 32), (x, 16), (f"{x}l", 8))
}
_REGISTERS |= {
    f"r{i}{suffix}": (f"r{i}", bits)
    for i in range(8, 16)
    for suffix, bits in (("", 64), ("d", 32), ("w", 16), ("b", 8))
}


def _borrow(n: int, d: int, a: int) -> Flags:
    """The flags of d - a: here carry means borrow."""
    flags = sum_flags(d, ~a, n, 1)
    return flags._replace(c=not flags.c)


# Name -> result of destination d and source a, both unsigned, at a width of n bits.
_ARITHMETIC: dict[str, Callable[[int, int, int], int]] = {
    "add": lambda n, d, a: d + a,
    "sub": lambda n, d, a: d - a,
    "and": lambda n, d, a: d & a,
    "or": lambda n, d, a: d | a,
    "xor": lambda n, d, a: d ^ a,
    "shl": lambda n, d, a: d << a % max(n, 32),
    "shr": lambda n, d, a: d >> a % max(n, 32),
    "sar": lambda n, d, a: signed(d, n) >> a % max(n, 32),
    "imul": lambda n, d, a: signed(d, n) * signed(a, n),
}
# Flags of the other operations are those of the result.
_FLAGS: dict[str, Callable[[int, int, int], Flags]] = {"add": lambda n, d, a: sum_flags(d, a, n), "sub": _borrow}
_COMPARISONS = {"cmp": "sub", "test": "and"}
# With one operand -> (operation, source).
_UNARY = {"inc": ("add", 1), "dec": ("sub", 1), "shl": ("shl", 1), "shr": ("shr", 1), "sar": ("sar", 1)}
_CONDITIONS: dict[str, Callable[[Flags], bool]] = {
    "e": lambda f: f.z,
    "b": lambda f: f.c,
    "be": lambda f: f.c or f.z,
    "s": lambda f: f.n,
    "o": lambda f: f.v,
    "l": lambda f: f.n != f.v,
    "le": lambda f: f.z or f.n != f.v,
}
_OPPOSITES = {"ne": "e", "ae": "b", "a": "be", "ns": "s", "no": "o", "ge": "l", "g": "le"}
_SIGNS = {"cltd": ("eax", "edx"), "cqto": ("rax", "rdx"), "cltq": ("eax", "rax"), "cwtl": ("ax", "eax")}
_SETS_FLAGS = re.compile(r"kortest|ktest|v?ptest|v?u?comis")


def call(machine: Machine, stack: int, arguments: Sequence[int]) -> None:
    """Pass arguments to the function that the trace begins with: six in registers, the rest on the stack."""
    machine.registers |= dict(zip(("rdi", "rsi", "rdx", "rcx", "r8", "r9"), arguments, strict=False))
    machine.registers["rsp"] = stack - 8  # the return address
    for i, value in enumerate(arguments[6:]):
        machine.store(stack + 8 * i, 8, value)


def decode(line: str, labels: Mapping[str, int], after: int) -> Step | None:
    """The step of an instruction; None when it changes no scalar state."""
    name, _, rest = line.partition(" ")
    operands = [part.strip() for part in re.split(r",(?![^(]*\))", rest)] if rest else []
    if JUMP.match(line):
        return _jump(name, operands, labels, after)
    if name in _SIGNS:
        return _sign(name)
    if not operands or re.search(r"%([xyz]mm|k)\d|%tmm", rest):
        return _on_vectors(name, operands)
    if found := re.fullmatch(r"(cmov|set)([a-z]{1,2}?)([bwlq]?)", name):
        base, condition = found[1], found[2]
        if condition in _CONDITIONS or condition in _OPPOSITES:
            return _choice(base, condition, operands, labels)
    if found := re.fullmatch(r"mov([sz])([bwl])([wlq])", name):
        return _moved(operands, _WIDTHS[found[2]], _WIDTHS[found[3]], found[1] == "s", labels)
    return _plain(name[:-1], _WIDTHS[name[-1]], operands, labels) if name[-1] in _WIDTHS else _unknown(operands)


def _plain(name: str, n: int, operands: Sequence[str], labels: Mapping[str, int]) -> Step | None:
    """Instructions whose name ended in their width, n bits; `name` is without it."""
    if name in ("mov", "movabs"):
        return _moved(operands, n, n, False, labels)
    if name == "lea":
        address, write = _address(operands[0], labels), _write(operands[1], n, labels)
        return lambda m: write(m, address(m))
    if name in ("push", "pop"):
        return _stack(name, operands[0], labels)
    if name in ("div", "idiv"):
        return _divided(name, n, operands[0], labels)
    if name in ("neg", "not"):
        return _negated(name, n, operands[0], labels)
    if len(operands) == 1 and name in _UNARY:
        name, source = _UNARY[name]
        operands = [f"${source}", *operands]
    if name in _COMPARISONS or name in _ARITHMETIC:
        writes = name not in _COMPARISONS
        return _computed(_COMPARISONS.get(name, name), n, operands, writes, labels)
    return _unknown(operands)


def _read(operand: str, n: int, labels: Mapping[str, int]) -> Read:
    """The unsigned value of an operand of n bits."""
    if operand[0] == "$":
        try:
            number = mask(int(operand[1:], 0), n)
        except ValueError:
            number = labels.get(operand[1:], 0)
        return lambda m: number
    if operand[0] == "%":
        wide = _REGISTERS[operand[1:]][0] if operand[1:] in _REGISTERS else ""

        def read(m: Machine) -> Value:
            value = m.registers.get(wide)
            if value is None and n == 8:
                value = m.registers.get(wide + LOW)
            return None if value is None else mask(value, n)

        return read
    address = _address(operand, labels)
    return lambda m: m.load(address(m), n // 8)


def _write(operand: str, n: int, labels: Mapping[str, int]) -> Write:
    """Write n bits to an operand: in a register 32 bits clear the upper half, 8 and 16 keep the other bits."""
    if operand[0] != "%":
        address = _address(operand, labels)
        return lambda m, value: m.store(address(m), n // 8, value)
    wide = _REGISTERS[operand[1:]][0] if operand[1:] in _REGISTERS else operand[1:]

    def write(m: Machine, value: Value) -> None:
        if n < 32 and value is not None:
            old = m.registers.get(wide)
            m.registers[wide] = None if old is None else old & ~mask(-1, n) | mask(value, n)
            m.registers[wide + LOW] = mask(value, n)
        else:
            m.registers[wide] = None if value is None else mask(value, n)
            m.registers[wide + LOW] = None

    return write


def _address(operand: str, labels: Mapping[str, int]) -> Read:
    """displacement(base, index, scale); a displacement may be a label, a base %rip."""
    displacement, parts = re.fullmatch(r"([^(]*)(?:\((.*)\))?", operand).groups()  # type: ignore[union-attr]
    fixed = sum(_number(term, labels) for term in re.findall(r"[+-]?[^+-]+", displacement))
    base, index, scale = ([p.strip() for p in (parts or "").split(",")] + ["", ""])[:3]
    reads = [_read(x, 64, labels) if x and x != "%rip" else None for x in (base, index)]
    times = (1, int(scale or 1))

    def read(m: Machine) -> Value:
        total = fixed
        for source, factor in zip(reads, times, strict=True):
            if source is not None:
                value = source(m)
                if value is None:
                    return None
                total += value * factor
        return total

    return read


def _number(term: str, labels: Mapping[str, int]) -> int:
    """A term of a displacement: a number, or a label's address; 0 for symbols of other files."""
    return int(term, 0) if re.fullmatch(r"[+-]?\d\w*", term) else labels.get(term.lstrip("+").split("@")[0], 0)


def _moved(operands: Sequence[str], bits: int, n: int, extend: bool, labels: Mapping[str, int]) -> Step:
    read, write = _read(operands[0], bits, labels), _write(operands[1], n, labels)

    def step(m: Machine) -> None:
        value = read(m)
        write(m, signed(value, bits) if extend and value is not None else value)

    return step


def _computed(name: str, n: int, operands: Sequence[str], writes: bool, labels: Mapping[str, int]) -> Step:
    """destination op= source, or with three operands (imul) destination = other op source; and the flags."""
    source, other, target = _read(operands[0], n, labels), _read(operands[1], n, labels), operands[-1]
    write, operation = _write(target, n, labels), _ARITHMETIC[name]
    flags = _FLAGS.get(name)
    zero = name == "xor" and operands[0] == operands[1]

    def step(m: Machine) -> None:
        a, d = (0, 0) if zero else (source(m), other(m))
        result = None if a is None or d is None else operation(n, d, a)
        if a is None or d is None or result is None:
            m.flags = None
        else:
            m.flags = flags(n, d, a) if flags else logic_flags(result, n)
        if writes:
            write(m, result)

    return step


def _negated(name: str, n: int, operand: str, labels: Mapping[str, int]) -> Step:
    read, write = _read(operand, n, labels), _write(operand, n, labels)

    def step(m: Machine) -> None:
        value = read(m)
        if name == "neg":
            m.flags = None if value is None else _borrow(n, 0, value)
        write(m, None if value is None else -value if name == "neg" else ~value)

    return step


def _divided(name: str, n: int, operand: str, labels: Mapping[str, int]) -> Step:
    """rdx:rax over the operand: quotient in rax, remainder in rdx."""
    low, high, by = (_read(x, n, labels) for x in ("%rax", "%rdx", operand))
    quotient, remainder = (_write(x, n, labels) for x in ("%rax", "%rdx"))

    def step(m: Machine) -> None:
        a, b, c = low(m), high(m), by(m)
        if a is None or b is None or not c:
            quotient(m, None)
            remainder(m, None)
            return
        top, bottom = b << n | a, c
        if name == "idiv":
            top, bottom = signed(top, 2 * n), signed(c, n)
        quotient(m, divide(top, bottom))
        remainder(m, top - divide(top, bottom) * bottom)

    return step


def _sign(name: str) -> Step:
    """Sign extension of a register, to a wider one or into all bits of another."""
    source, target = _SIGNS[name]
    (wide, bits), (into, n) = _REGISTERS[source], _REGISTERS[target]
    write = _write(f"%{target}", n, {})

    def step(m: Machine) -> None:
        value = m.registers.get(wide)
        whole = None if value is None else signed(value, bits)
        write(m, whole if whole is None or wide == into else whole >> bits)

    return step


def _choice(base: str, condition: str, operands: Sequence[str], labels: Mapping[str, int]) -> Step:
    n = 8 if base == "set" else _REGISTERS[operands[-1][1:]][1]
    old, write = _read(operands[-1], n, labels), _write(operands[-1], n, labels)
    new = _read(operands[0], n, labels)

    def step(m: Machine) -> None:
        holds = _holds(m, condition)
        if base == "set":
            write(m, None if holds is None else int(holds))
        else:
            write(m, None if holds is None else new(m) if holds else old(m))

    return step


def _stack(name: str, operand: str, labels: Mapping[str, int]) -> Step:
    read, write = _read(operand, 64, labels), _write(operand, 64, labels)

    def step(m: Machine) -> None:
        top = m.registers["rsp"]
        assert top is not None
        if name == "push":
            m.registers["rsp"] = top - 8
            m.store(top - 8, 8, read(m))
        else:
            m.registers["rsp"] = top + 8
            write(m, m.load(top, 8))

    return step


def _on_vectors(name: str, operands: Sequence[str]) -> Step | None:
    """Vector instructions: a scalar register or flags that they write become unknown."""
    target = operands[-1][1:] if operands and operands[-1][0] == "%" else ""
    if target in _REGISTERS:
        return lambda m: m.registers.__setitem__(_REGISTERS[target][0], None)
    if _SETS_FLAGS.match(name):
        return lambda m: setattr(m, "flags", None)
    return None


def _unknown(operands: Sequence[str]) -> Step | None:
    target = operands[-1][1:] if operands else ""

    def step(m: Machine) -> None:
        m.flags = None
        m.registers[_REGISTERS[target][0]] = None

    return step if target in _REGISTERS else None


def _holds(m: Machine, condition: str) -> bool | None:
    if m.flags is None:
        return None
    name = _OPPOSITES.get(condition, condition)
    return _CONDITIONS[name](m.flags) == (name == condition)


def _jump(name: str, operands: Sequence[str], labels: Mapping[str, int], after: int) -> Step | None:
    if name.startswith("ret"):
        return _return
    target = operands[0]
    if name.startswith("call"):
        if target not in labels:
            return lambda m: m.registers.__setitem__("rax", m.registers.get("rdi"))  # memcpy, memset
        return lambda m: _call(m, labels[target], after)
    if name.startswith("jmp"):
        if target[0] == "*":
            read = _read(target[1:], 64, labels)
            return lambda m: _known(read(m), name, target)
        return (lambda m: labels[target]) if target in labels else _return  # a tail call: libc returns to our caller
    to = labels[target]
    return lambda m: to if _known(_holds(m, name[1:]), name, target) else None


def _call(m: Machine, to: int, after: int) -> int:
    top = m.registers["rsp"]
    assert top is not None
    m.registers["rsp"] = top - 8
    m.returns.append(after)
    return to


def _return(m: Machine) -> int:
    top = m.registers["rsp"]
    assert top is not None
    m.registers["rsp"] = top + 8
    return m.returns.pop() if m.returns else 0


def _known(value: Value, name: str, target: str) -> int:
    if value is None:
        raise BitgenError(f"cannot tell where `{name} {target}` goes: it depends on data")
    return value
