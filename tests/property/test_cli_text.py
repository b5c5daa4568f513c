"""Templates, log frames and event streams: any input gives a result or a sentence, however it is cut into pieces."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fleet import errors
from fleet.cli import clock
from fleet.cli.converge import judge
from fleet.cli.events import read_events
from fleet.cli.logs import frames
from fleet.cli.stack_plan import differences
from fleet.cli.template import Template

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["A", "B", "Name"]), inner, max_size=3)
    ),
    max_leaves=8,
)
ACTIONS = "json range if else end with index len break continue printf and eq else.if $x:=. ) , :="
WORDS = ["{{", "}}", ".", ".A", ".B.A", *ACTIONS.split(), '"x"', " ", "|", "-", "(", "$", "1"]


@given(st.one_of(st.text(max_size=40), st.lists(st.sampled_from(WORDS), max_size=16).map("".join)), JSON)
def test_any_template_renders_or_is_refused(text: str, value: Any) -> None:
    with contextlib.suppress(errors.UserError):
        assert isinstance(Template(text).render(value), str)


@given(JSON)
def test_json_function_gives_the_value_back(value: Any) -> None:
    assert json.loads(Template("{{json .}}").render(value)) == value


def cut(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    at = 0
    for size in sizes:
        yield data[at : at + size]
        at += size
    yield data[at:]


@given(
    st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=30)), max_size=6),
    st.lists(st.integers(1, 9), max_size=30),
)
def test_frames_survive_any_cutting(sent: list[tuple[int, bytes]], sizes: list[int]) -> None:
    data = b"".join(bytes([s, 0, 0, 0]) + len(p).to_bytes(4, "big") + p for s, p in sent)
    assert list(frames(cut(data, sizes))) == sent


@given(st.binary(max_size=40), st.lists(st.integers(1, 9), max_size=8))
def test_anything_else_is_refused_and_not_read_as_lines(data: bytes, sizes: list[int]) -> None:
    with contextlib.suppress(errors.UnavailableError):
        for _, payload in frames(cut(data, sizes)):
            assert payload in data


@given(
    st.lists(st.dictionaries(st.text(max_size=3), JSON, max_size=2), max_size=4),
    st.lists(st.integers(1, 5), max_size=40),
)
def test_events_survive_any_cutting(events: list[dict[str, Any]], sizes: list[int]) -> None:
    data = b"\n".join(json.dumps(event, ensure_ascii=False).encode() for event in events)
    assert list(read_events(cut(data, sizes))) == events


@given(JSON, JSON)
def test_differences_are_none_exactly_between_equals(first: Any, second: Any) -> None:
    assert list(differences(first, first)) == []
    if isinstance(first, str | int) and isinstance(second, str | int) and first != second:
        assert len(list(differences(first, second))) == 1


@given(st.floats(0, 10**9))
def test_spans_are_words(seconds: float) -> None:
    assert clock.span(seconds).split()[-1].rstrip("s") in {"second", "minute", "hour", "day", "week", "month", "year"}


@given(st.datetimes(timezones=st.just(UTC), min_value=datetime(2, 1, 1)))  # noqa: DTZ001 - hypothesis adds the zone
def test_times_are_read_with_nanoseconds(moment: datetime) -> None:
    assert clock.parse_time(moment.isoformat().replace("+00:00", "Z")) == moment


STATES = [
    "new",
    "pending",
    "assigned",
    "preparing",
    "running",
    "complete",
    "failed",
    "rejected",
    "shutdown",
    "orphaned",
]
TASKS = st.lists(
    st.fixed_dictionaries(
        {
            "ID": st.text("abc", min_size=1, max_size=3),
            "Slot": st.integers(1, 3),
            "NodeID": st.sampled_from(["n1", "n2"]),
            "DesiredState": st.sampled_from(["ready", "running", "shutdown", "remove"]),
            "Status": st.fixed_dictionaries({"State": st.sampled_from(STATES)}, optional={"Err": st.just("why")}),
        }
    ),
    max_size=6,
)


@given(TASKS, st.integers(0, 3), st.sampled_from(["any", "none", "on-failure"]))
def test_converged_never_means_fewer_tasks_than_asked_for(tasks: Any, replicas: int, condition: str) -> None:
    template = {"RestartPolicy": {"Condition": condition}}
    spec = {"Name": "w", "Mode": {"Replicated": {"Replicas": replicas}}, "TaskTemplate": template}
    verdict = judge({"Spec": spec}, tasks)
    running = [t for t in tasks if t["Status"]["State"] == "running" and t["DesiredState"] in ("ready", "running")]
    done = {t["Slot"] for t in tasks if t["Status"]["State"] == "complete"} if condition != "any" else set()
    if verdict.converged:
        assert len(running) + len(done) >= replicas
    assert 0 <= verdict.running <= verdict.desired == replicas
