"""Bars of layers on a terminal: each keeps its line, nothing wraps, nothing of the daemon's text moves the cursor."""

from __future__ import annotations

import io
from typing import Any

import pytest

from fleet.cli import progress
from fleet.cli.progress import Bars


class Screen(io.StringIO):
    """Understands what ``Bars`` writes, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.lines, self.row = [""], 0

    def write(self, text: str) -> int:
        rest = text
        while rest:
            if rest.startswith("\x1b["):
                end = next(at for at, sign in enumerate(rest) if sign.isalpha())
                self._move(rest[2:end], rest[end])
                rest = rest[end + 1 :]
                continue
            if rest[0] == "\n":
                self.row += 1
                if self.row == len(self.lines):
                    self.lines.append("")
            elif rest[0] != "\r":
                self.lines[self.row] += rest[0]
            rest = rest[1:]
        return len(text)

    def _move(self, number: str, letter: str) -> None:
        match letter:
            case "A":
                self.row -= int(number)
            case "B":
                self.row += int(number)
            case "K":
                self.lines[self.row] = ""
            case _:
                raise AssertionError(letter)


def at(layer: str, status: str, current: int = 0, total: int = 0) -> dict[str, Any]:
    return {"id": layer, "status": status, "progressDetail": {"current": current, "total": total} if total else {}}


@pytest.fixture(autouse=True)
def width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "columns_of", lambda _stream: 80)


def test_every_layer_keeps_its_line() -> None:
    screen = Screen()
    bars = Bars(screen)
    for message in (
        {"status": "Pulling from app"},
        at("aaa", "Waiting"),
        at("bbb", "Downloading", 10, 100),
        at("aaa", "Downloading", 50_000_000, 100_000_000),
        {"status": "Digest: sha256:1"},
        at("bbb", "Download complete"),
        at("aaa", "Pull complete"),
        at("bbb", "Downloading", 100, 100),
    ):
        bars.show(message)
        if message.get("progressDetail") == {"current": 50_000_000, "total": 100_000_000}:
            assert screen.lines[1] == "aaa: Downloading [===============>              ] 50MB/100MB"
    assert screen.lines == [
        "Pulling from app",
        "aaa: Pull complete",
        f"bbb: Downloading [{'=' * 30}] 100B/100B",
        "Digest: sha256:1",
        "",
    ]
    assert screen.row == 4


def test_long_and_hostile_texts_stay_on_their_line() -> None:
    screen = Screen()
    bars = Bars(screen)
    bars.show(at("aaa", "Retrying: " + "x" * 500))
    bars.show(at("bbb", "\x1b[5A\x1b[2Jgone\n\r"))
    bars.show({"stream": "one\ntwo\n"})
    assert [len(line) <= 79 for line in screen.lines] == [True] * 5
    assert screen.lines[1] == "bbb:  [5A [2Jgone  "
    assert screen.lines[2:] == ["one", "two", ""]


@pytest.mark.parametrize(
    "detail", [None, [], {"current": "1", "total": 2}, {"current": 5, "total": 2}, {"current": -1, "total": 2}]
)
def test_what_is_no_progress_is_no_bar(detail: Any) -> None:
    screen = Screen()
    Bars(screen).show({"id": "aaa", "status": "Downloading", "progressDetail": detail})
    assert screen.lines[0] == "aaa: Downloading"
