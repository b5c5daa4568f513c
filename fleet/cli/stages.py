"""How far a long operation is: one line a stage on standard error; on a terminal the line is rewritten as it goes on."""

from __future__ import annotations

import sys

import click

from fleet.cli.widths import is_live

__all__ = ["StageLines"]


class StageLines:
    """``quiet``: nothing is shown."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._live = is_live(sys.stderr)
        self._stage = ""

    def show(self, stage: str, detail: str = "") -> None:
        """``detail`` is for terminals: what changes within a stage."""
        if self._quiet or (stage == self._stage and not self._live):
            return
        if self._live:
            text = f"{stage}: {detail}" if detail else stage
            click.echo(("\r\x1b[K" if stage == self._stage else self._break()) + text, nl=False, err=True)
        else:
            click.echo(stage, err=True)
        self._stage = stage

    def _break(self) -> str:
        return "\n" if self._stage else ""

    def end(self) -> None:
        """End the line; what is printed next stands by itself."""
        if self._live and self._stage:
            click.echo("", err=True)
        self._stage = ""
