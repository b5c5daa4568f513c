"""How far a long operation is, on a terminal and in a pipe."""

from __future__ import annotations

import io
import sys

import pytest

from fleet.cli.stages import StageLines


class Screen(io.StringIO):
    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def shown(monkeypatch: pytest.MonkeyPatch, *, terminal: bool, quiet: bool = False, term: str = "xterm") -> str:
    screen = Screen(terminal=terminal)
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(sys, "stderr", screen)
    lines = StageLines(quiet=quiet)
    for stage, detail in (("copying", "1 kB"), ("copying", "2 kB"), ("starting", "")):
        lines.show(stage, detail)
    lines.end()
    return screen.getvalue()


def test_a_pipe_has_a_line_a_stage_and_a_terminal_one_that_is_rewritten(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, terminal=False) == "copying\nstarting\n"
    assert shown(monkeypatch, terminal=True) == "copying: 1 kB\r\x1b[Kcopying: 2 kB\nstarting\n"
    assert shown(monkeypatch, terminal=True, term="dumb") == "copying\nstarting\n"
    assert shown(monkeypatch, terminal=True, quiet=True) == ""
