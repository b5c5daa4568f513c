"""Assembles a system call policy into the classic BPF program the kernel runs for every call of the container.

libseccomp compares the number with each allowed call in turn: 1,125 instructions for the default profile, which take
the kernel 650 us to load (it runs the program once for every number to build its bitmap) and 313 instructions for an
uncached call. Here the numbers are cut into *ranges with one verdict* and searched as a binary tree: about 150
instructions, 50 us to load, some 11 per uncached call.

Classic BPF jumps only forward and, when conditional, at most 255 instructions. So the program is assembled from its
end: every target is already placed when a jump to it is written, and a target too far away gets a nearer copy
(verdicts) or a long jump.
"""

from __future__ import annotations

import struct

from fleet.errors import InvariantError
from fleet.node_runtime.seccomp_profile import MaskedEqual, Policy, Ranges
from fleet.node_runtime.syscall_tables import AUDIT_ARCH, LAST_KNOWN

__all__ = ["assemble", "interpret"]

_LD, _JA, _JEQ, _JGT, _JGE, _RET, _AND = 0x20, 0x05, 0x15, 0x25, 0x35, 0x06, 0x54
_NR, _ARCH, _ARGS = 0, 4, 16  # offsets in struct seccomp_data
_X32_BIT = 0x40000000
_U32 = 0xFFFFFFFF
_INSTRUCTIONS_MAX = 4096  # BPF_MAXINSNS


class _Reverse:
    """A program under construction, last instruction first. A *place* counts instructions from the end."""

    def __init__(self) -> None:
        self.code: list[tuple[int, int, int, int]] = []
        self._verdicts: dict[int, int] = {}

    def emit(self, op: int, k: int, jt: int = 0, jf: int = 0) -> int:
        self.code.append((op, k, jt, jf))
        return len(self.code) - 1

    def verdict(self, action: int) -> int:
        place = self._verdicts.get(action)
        if place is None or len(self.code) - place > 200:
            place = self._verdicts[action] = self.emit(_RET, action)
        return place

    def branch(self, op: int, k: int, yes: int, no: int) -> int:
        """A conditional jump to two places; a fall through costs nothing, a far place gets a long jump in between."""
        yes, no = self._near(yes), self._near(no)
        yes = self._near(yes)  # placing the second long jump may have moved the first out of reach
        here = len(self.code)
        return self.emit(op, k, here - yes - 1, here - no - 1)

    def _near(self, place: int) -> int:
        if len(self.code) - place - 1 <= 252:
            return place
        return self.emit(_JA, len(self.code) - place - 1)

    def load(self, offset: int, then: int) -> int:
        """Load, and continue at ``then``, which must be what was emitted last or is reached by a long jump."""
        if then != len(self.code) - 1:
            self.emit(_JA, len(self.code) - then - 1)
        return self.emit(_LD, offset)


def assemble(policy: Policy) -> bytes:
    """The program as an array of ``struct sock_filter``. A foreign architecture or x32 entry gets the *unknown*
    verdict.
    """
    program = _Reverse()
    intervals: list[tuple[int, int | None]] = []  # first number, verdict (None: rules of exactly that number)
    last = LAST_KNOWN[policy.machine]
    for number in range(last + 1):
        verdict = None if number in policy.rules else policy.plain.get(number, policy.default)
        if verdict is None or not intervals or intervals[-1][1] != verdict:
            intervals.append((number, verdict))
    intervals.append((last + 1, policy.unknown))
    body = _tree(program, policy, intervals)
    unknown = program.verdict(policy.unknown)
    if policy.machine == "x86_64":
        body = program.branch(_JGE, _X32_BIT, unknown, body)
    body = program.load(_NR, body)
    unknown = program.verdict(policy.unknown)
    body = program.branch(_JEQ, AUDIT_ARCH[policy.machine], body, unknown)
    program.load(_ARCH, body)
    if len(program.code) > _INSTRUCTIONS_MAX:
        raise InvariantError(
            f"seccomp program has {len(program.code)} instructions, the kernel takes {_INSTRUCTIONS_MAX}"
        )
    return b"".join(struct.pack("=HBBI", op, jt, jf, k) for op, k, jt, jf in reversed(program.code))


def _tree(program: _Reverse, policy: Policy, intervals: list[tuple[int, int | None]]) -> int:
    if len(intervals) == 1:
        number, verdict = intervals[0]
        return program.verdict(verdict) if verdict is not None else _rules(program, policy, number)
    middle = len(intervals) // 2
    high = _tree(program, policy, intervals[middle:])
    low = _tree(program, policy, intervals[:middle])
    return program.branch(_JGE, intervals[middle][0], high, low)


def _rules(program: _Reverse, policy: Policy, number: int) -> int:
    otherwise = program.verdict(policy.plain.get(number, policy.default))
    for conditions, action in reversed(policy.rules[number]):
        place = program.verdict(action)
        for condition in reversed(conditions):
            if isinstance(condition, MaskedEqual):
                place = _masked_equal(program, condition, place, otherwise)
            else:
                place = _in_ranges(program, condition, place, otherwise)
        otherwise = place
    return otherwise


def _masked_equal(program: _Reverse, condition: MaskedEqual, yes: int, no: int) -> int:
    offset = _ARGS + 8 * condition.index
    for half in (0, 1):  # low word is tested last, so it is written first; little-endian on both machines
        mask, value = (condition.mask >> 32 * half) & _U32, (condition.value >> 32 * half) & _U32
        if not mask and not value:
            continue
        place = program.branch(_JEQ, value, yes, no)
        if mask != _U32:
            place = program.emit(_AND, mask)
        yes = program.load(offset + 4 * half, place)
    return yes


def _in_ranges(program: _Reverse, condition: Ranges, yes: int, no: int) -> int:
    place = no
    for low, high in reversed(condition.ranges):
        below = place
        inside = yes
        if high < (1 << 64) - 1:
            inside = _at_least(program, condition.index, high + 1, below, yes)
        place = _at_least(program, condition.index, low, inside, below) if low else inside
    return place


def _at_least(program: _Reverse, index: int, value: int, yes: int, no: int) -> int:
    """Unsigned 64-bit ``argument >= value`` by its two words."""
    offset = _ARGS + 8 * index
    low = program.load(offset, program.branch(_JGE, value & _U32, yes, no))
    equal = program.branch(_JEQ, value >> 32, low, no)
    above = program.branch(_JGT, value >> 32, yes, equal)
    return program.load(offset + 4, above)


def interpret(program: bytes, *, number: int, arch: int, arguments: tuple[int, ...] = ()) -> int:
    """What the kernel would answer: runs the program over one call. The oracle of tests, and of ``fleet`` when asked
    why a call fails.
    """
    data = struct.pack("<iIQ6Q", number, arch, 0, *(arguments + (0,) * (6 - len(arguments))))
    position = accumulator = 0
    while True:
        op, jt, jf, k = struct.unpack_from("=HBBI", program, position * 8)
        position += 1
        match op:
            case 0x20:
                accumulator = struct.unpack_from("<I", data, k)[0]
            case 0x54:
                accumulator &= k
            case 0x05:
                position += k
            case 0x15:
                position += jt if accumulator == k else jf
            case 0x25:
                position += jt if accumulator > k else jf
            case 0x35:
                position += jt if accumulator >= k else jf
            case 0x06:
                return int(k)
            case _:
                raise InvariantError(f"instruction {op:#x} is not one the assembler writes")
