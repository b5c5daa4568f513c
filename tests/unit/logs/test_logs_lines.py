"""Lines of the daemon's log."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest

from fleet import logs


@pytest.fixture(autouse=True)
def _quiet_again(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("_write", "_render", "_least"):
        monkeypatch.setattr(logs, name, getattr(logs, name))
    yield


def test_json_lines_carry_time_level_event_and_fields() -> None:
    out = io.StringIO()
    logs.configure(level="info", form="json", stream=out)
    logs.get_logger("worker").warning("task lost", task="abc", count=2, cause=ValueError("x\ny"))
    line = json.loads(out.getvalue())
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "level": "warning",
        "event": "task lost",
        "logger": "worker",
        "task": "abc",
        "count": 2,
        "cause": "x\ny",
    }


def test_events_below_the_level_are_not_written() -> None:
    out = io.StringIO()
    logs.configure(level="warning", form="text", stream=out)
    log = logs.get_logger("x")
    log.debug("a")
    log.info("b")
    assert out.getvalue() == ""


def test_text_stays_on_one_line_whatever_the_fields_hold() -> None:
    out = io.StringIO()
    logs.configure(level="debug", form="text", stream=out)
    logs.get_logger("x").debug("seen", name="a b", evil="1\nlevel=error", plain="w1", empty="")
    (line,) = out.getvalue().splitlines()
    assert 'name="a b"' in line
    assert r'evil="1\nlevel=error"' in line
    assert "plain=w1" in line
    assert 'empty=""' in line


def test_an_exception_being_handled_is_told_with_its_traceback() -> None:
    out = io.StringIO()
    logs.configure(level="info", form="json", stream=out)
    try:
        raise RuntimeError("broken")
    except RuntimeError:
        logs.get_logger("x").exception("work failed")
    assert json.loads(out.getvalue())["exception"].endswith("RuntimeError: broken")


def test_a_full_disk_does_not_stop_who_logs() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    logs.configure(level="info", form="text", stream=Full())
    logs.get_logger("x").info("goes on")


def test_lines_name_the_request_they_are_about() -> None:
    assert logs.about_requests(["", ""]) == {}
    assert logs.about_requests(["b", "", "b"]) == {"request": "b"}
    assert logs.about_requests(["b", "a", "b"]) == {"requests": ["a", "b"]}
    many = logs.about_requests(str(number) for number in range(100))
    assert isinstance(many["requests"], list)
    assert len(many["requests"]) == 16
