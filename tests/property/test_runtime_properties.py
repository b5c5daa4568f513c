"""Clever code against its dumb twin: filters, log lines, identities, frames."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.node_runtime.log_writer import LINE_BYTES_MAX, LogWriter
from fleet.node_runtime.seccomp import assemble, interpret
from fleet.node_runtime.seccomp_profile import ALLOW, MaskedEqual, Policy, Ranges, errno_action
from fleet.node_runtime.syscall_tables import AUDIT_ARCH
from fleet.node_runtime.users import UnknownUserError, resolve_identity

U64 = (1 << 64) - 1
values = st.one_of(st.integers(0, 64), st.integers(0, U64), st.sampled_from([1 << 32, (1 << 32) - 1, U64, 1 << 63]))
numbers = st.integers(0, 469)


@st.composite
def ranges(draw: st.DrawFn) -> Ranges:
    edges = sorted(draw(st.sets(values, min_size=2, max_size=6)))
    pairs = tuple((edges[i], edges[i + 1]) for i in range(0, len(edges) - 1, 2))
    return Ranges(draw(st.integers(0, 5)), pairs)


@st.composite
def masked(draw: st.DrawFn) -> MaskedEqual:
    mask = draw(values)
    return MaskedEqual(draw(st.integers(0, 5)), mask, draw(values) & mask)


actions = st.sampled_from([ALLOW, errno_action(1), errno_action(38), 0x80000000])
rules = st.lists(
    st.tuples(st.lists(st.one_of(ranges(), masked()), min_size=1, max_size=3).map(tuple), actions),
    min_size=1,
    max_size=6,
)


def holds(condition: Ranges | MaskedEqual, arguments: tuple[int, ...]) -> bool:
    value = arguments[condition.index]
    if isinstance(condition, MaskedEqual):
        return value & condition.mask == condition.value
    return any(low <= value <= high for low, high in condition.ranges)


@settings(max_examples=150, deadline=None)
@given(
    plain=st.dictionaries(numbers, actions, max_size=200),
    conditional=st.dictionaries(numbers, rules, max_size=25),
    calls=st.lists(st.tuples(numbers, st.tuples(*[values] * 6)), min_size=1, max_size=30),
)
def test_a_filter_decides_as_its_policy(plain: dict, conditional: dict, calls: list) -> None:  # type: ignore[type-arg]
    policy = Policy("x86_64", plain=plain, rules=conditional)
    program = assemble(policy)
    asked = calls + [(number, arguments) for number in list(conditional)[:10] for _, arguments in calls[:5]]
    for number, arguments in asked:
        expected = plain.get(number, policy.default)
        for conditions, action in conditional.get(number, []):
            if all(holds(condition, arguments) for condition in conditions):
                expected = action
                break
        assert interpret(program, number=number, arch=AUDIT_ARCH["x86_64"], arguments=arguments) == expected


@settings(max_examples=100, deadline=None)
@given(
    chunks=st.lists(
        st.one_of(
            st.text(max_size=40).map(str.encode), st.sampled_from([b"\n", b"x" * 9000, "\u20ac".encode() * 7000])
        ),
        max_size=30,
    ),
    size=st.integers(200, 100_000),
)
def test_no_byte_of_a_log_is_lost_or_reordered(chunks: list[bytes], size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        log = LogWriter(f"{folder}/log", max_size_bytes=size, max_files=900)
        for chunk in chunks:
            log.feed("stdout", chunk, time_ns=1)
        log.close(time_ns=1)
        files = sorted(Path(folder).iterdir(), key=lambda path: -int(path.suffix[1:] or 0))
        records = [json.loads(line)["log"] for path in files for line in path.read_text().split("\n") if line]
    assert "".join(records).encode() == b"".join(chunks)
    assert all(len(record.encode()) <= LINE_BYTES_MAX + 1 for record in records)
    assert all("\n" not in record[:-1] for record in records)


@settings(max_examples=300)
@given(user=st.text(max_size=12), passwd=st.binary(max_size=60), group=st.binary(max_size=60))
def test_only_a_named_root_is_root(user: str, passwd: bytes, group: bytes) -> None:
    with contextlib.suppress(UnknownUserError):
        identity = resolve_identity(user, [], passwd=passwd, group=group)
        name = user.partition(":")[0]
        if identity.uid == 0:
            assert name == "" or int(name if name.isdigit() else 0) == 0
            assert (
                name == ""
                or name.isdigit()
                or any(line.split(b":")[0] == name.encode() for line in passwd.splitlines())
            )
        assert 0 <= identity.uid < 1 << 31
        assert 0 <= identity.gid < 1 << 31
