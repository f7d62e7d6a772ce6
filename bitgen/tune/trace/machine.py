"""The state that scalar instructions change: registers, memory, flags. A value is an integer, or None: unknown."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

Value = int | None
Step = Callable[["Machine"], int | None]
"""One instruction: changes the machine; returns the address of its jump, or None to continue with the next one."""


class Flags(NamedTuple):
    """Negative, zero, carry (ARM's sense: no borrow), overflow."""

    n: bool
    z: bool
    c: bool
    v: bool


class Machine:
    """Registers by their widest name, the known bytes of memory, and the flags, None when unknown."""

    def __init__(self) -> None:
        self.registers: dict[str, Value] = {}
        self.memory: dict[int, int] = {}
        self.flags: Flags | None = None
        self.returns: list[int] = []  # return addresses of the calls in progress

    def load(self, address: Value, size: int) -> Value:
        """The little-endian integer of `size` bytes, None unless all are known."""
        if address is None:
            return None
        found = [self.memory.get(address + i) for i in range(size)]
        return None if None in found else int.from_bytes(bytes(found), "little")  # type: ignore[arg-type]

    def store(self, address: Value, size: int, value: Value) -> None:
        """Write `size` bytes. A store to an unknown address is ignored: control flow depends on the stack only."""
        if address is None:
            return
        for i in range(size):
            if value is None:
                self.memory.pop(address + i, None)
            else:
                self.memory[address + i] = value >> 8 * i & 255


def mask(value: int, bits: int) -> int:
    """The low bits of an integer, unsigned."""
    return value & ((1 << bits) - 1)


def signed(value: int, bits: int) -> int:
    """The low bits of an integer, as two's complement."""
    value = mask(value, bits)
    return value - (value >> (bits - 1) << bits)


def sum_flags(a: int, b: int, bits: int, carry: int = 0) -> Flags:
    """The flags of a + b + carry; a - b is a + ~b + 1."""
    a, b = mask(a, bits), mask(b, bits)
    total, exact = a + b + carry, signed(a, bits) + signed(b, bits) + carry
    result = signed(total, bits)
    return Flags(result < 0, result == 0, bool(total >> bits), result != exact)


def logic_flags(value: int, bits: int) -> Flags:
    """The flags of a bitwise result; carry and overflow are clear."""
    return Flags(signed(value, bits) < 0, not mask(value, bits), False, False)


def divide(a: int, b: int) -> int:
    """The quotient a / b, rounded towards zero."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
