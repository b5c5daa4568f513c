"""Tables fit the terminal and are whole in a pipe; nothing that comes from elsewhere steers the terminal; no colour in pipes."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fleet.cli.widths import clean, cut, pad, shrunk, width_of
from tests.support.fake_engine import FakeEngine
from tests.support.terminal import Terminal

LONG = "registry.example.internal:5000/team/an-image-with-a-very-long-name-indeed/and-more:2026.11.30-build.1234"
SERVICES = [
    {
        "ID": f"{letter * 12}kx85p9mz3g3",
        "Spec": {
            "Name": f"stack-with-a-long-name_service-{letter}-with-a-name-that-is-longer",
            "Mode": {"Replicated": {"Replicas": 3}},
            "TaskTemplate": {"ContainerSpec": {"Image": LONG}},
        },
        "ServiceStatus": {"RunningTasks": 3, "DesiredTasks": 3},
    }
    for letter in "ab"
]
CONTAINERS = [
    {
        "Id": "ab" * 32,
        "Names": ["/web\x1b[2Jname"],
        "Image": LONG,
        "Command": "run \x07\x1b]0;title\x07 it",
        "Created": 1767323045,
        "Status": "Up",
        "State": "running",
        "Labels": {},
    }
]


@pytest.fixture
def daemon(engine: FakeEngine) -> FakeEngine:
    engine.on("GET", "/services", SERVICES)
    engine.on("GET", "/containers/json", CONTAINERS)
    return engine


def on_terminal(daemon: FakeEngine, *arguments: str, columns: int, **environment: str) -> list[str]:
    with Terminal(*arguments, environment={"FLEET_HOST": daemon.url, **environment}, columns=columns) as term:
        assert term.end() == 0
        return term.output.decode().replace("\r", "").splitlines()


def piped(daemon: FakeEngine, *arguments: str) -> str:
    command = [sys.executable, "-m", "fleet.cli.main", "-H", daemon.url, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.mark.parametrize("columns", [80, 100, 132])
def test_table_fits_the_terminal_and_keeps_the_ids(daemon: FakeEngine, columns: int) -> None:
    lines = on_terminal(daemon, "service", "ls", columns=columns)
    assert max(width_of(line) for line in lines) <= columns
    assert lines[0].split()[:5] == ["ID", "NAME", "MODE", "REPLICAS", "IMAGE"]
    assert lines[1].startswith("aaaaaaaaaaaa   stack-with")
    assert "…" in lines[1]
    assert "3/3" in lines[1]


def test_very_narrow_terminal_shortens_as_far_as_of_use(daemon: FakeEngine) -> None:
    lines = on_terminal(daemon, "service", "ls", columns=40)
    assert len(lines) == 3
    assert lines[1].startswith("aaaaaaaaaaaa   stack-with-…   replicated")


def test_table_is_whole_where_there_is_room_or_when_asked_for(daemon: FakeEngine) -> None:
    assert LONG in on_terminal(daemon, "service", "ls", columns=300)[1]
    assert LONG in on_terminal(daemon, "ps", "--no-trunc", columns=60)[1]
    assert LONG not in on_terminal(daemon, "ps", columns=60)[1]
    assert on_terminal(daemon, "service", "ls", "--format", "{{.Image}}", columns=40)[0] == LONG
    assert LONG in on_terminal(daemon, "service", "ls", "--format", "table {{.Name}}\t{{.Image}}", columns=40)[1]


def test_pipe_gets_whole_lines_without_escapes(daemon: FakeEngine) -> None:
    out = piped(daemon, "service", "ls")
    assert out.count(LONG) == 2
    assert "…" not in out
    assert "\x1b" not in piped(daemon, "stats", "--no-stream")


def test_terminal_sees_no_control_characters_of_others(daemon: FakeEngine) -> None:
    lines = on_terminal(daemon, "ps", columns=200)
    assert not {sign for line in lines for sign in line if not sign.isprintable()}
    assert "web [2Jname" in lines[1]


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}])
def test_lists_and_help_have_no_colour(daemon: FakeEngine, environment: dict[str, str]) -> None:
    for arguments in (["service", "ls"], ["--help"], ["service", "create", "--help"]):
        assert not any("\x1b" in line for line in on_terminal(daemon, *arguments, columns=80, **environment))


def test_progress_on_a_simple_terminal_is_lines(engine: FakeEngine) -> None:
    from tests.support.fake_engine import Reply

    body = b'{"id":"a","status":"Downloading"}\n{"id":"a","status":"Pull complete"}\n'
    engine.on("POST", "/images/create", Reply(raw=body))
    simple = on_terminal(engine, "pull", "x", columns=80, TERM="dumb")
    assert simple[:2] == ["a: Downloading", "a: Pull complete"]
    assert "\x1b[1A" in "".join(on_terminal(engine, "pull", "x", columns=80))


# --- the functions ----------------------------------------------------------------------------------------------------


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), max_size=8), st.integers(-5, 200))
@example([(19, 0), (19, 0), (19, 0)], 53)
def test_shrinking_takes_from_the_widest_and_stops_at_the_floors(columns: list[tuple[int, int]], room: int) -> None:
    widths, floors = [width for width, _ in columns], [min(columns_) for columns_ in columns]
    found = shrunk(widths, room=room, floors=floors)
    assert all(floor <= new <= old for floor, new, old in zip(floors, found, widths, strict=True))
    if sum(widths) <= room:
        assert found == widths
    else:
        assert sum(found) == max(room, sum(floors))
    cut_ones = [new for new, old in zip(found, widths, strict=True) if new < old]
    if cut_ones:  # what was not cut is no wider than what was, but for where a floor holds it
        loose = [new for new, floor in zip(found, floors, strict=True) if new > floor]
        assert max(loose, default=0) <= max(cut_ones) + 1


@given(st.text(max_size=30), st.integers(1, 40))
def test_cutting_and_padding_give_exactly_the_width(text: str, width: int) -> None:
    text = clean(text)
    assert width_of(cut(text, width)) <= width
    assert width_of(pad(cut(text, width), width)) == width
    assert text.isprintable()
    if width_of(text) <= width:
        assert cut(text, width) == text


def test_wide_characters_take_two_columns(fleet: Any, engine: FakeEngine) -> None:
    assert (width_of("名前"), width_of("é"), width_of("e\u0301"), cut("名前名前", 5)) == (4, 1, 1, "名前…")
    engine.on("GET", "/volumes", {"Volumes": [{"Name": n, "Driver": "local"} for n in ("名前", "b")]})
    lines = fleet("volume", "ls", "--format", "table {{.Name}}\t{{.Driver}}").out.splitlines()
    assert {width_of(line[: line.index("l")]) for line in lines[1:]} == {len(lines[0][: lines[0].index("DRIVER")])}
