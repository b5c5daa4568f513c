"""Rows to the terminal: tables with Docker's columns, JSON lines, templates, ids alone; objects as JSON or template."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

import click

from fleet import errors
from fleet.api.client import EngineError
from fleet.cli.widths import GAP, clean, columns_of, cut, pad, shrunk, width_of

__all__ = [
    "Column",
    "FORMATS",
    "LIST_FORMATS",
    "echo",
    "formatter",
    "inspect_each",
    "list_options",
    "print_rows",
    "print_warnings",
    "short_id",
    "each",
]

Row = dict[str, Any]
Column = tuple[str, str]
"""(field of the row, heading)."""

LIST_FORMATS: Final = "'table', 'table TEMPLATE', 'json', 'yaml', or a Go template."
FORMATS: Final = "'json', 'yaml' or a Go template."
"""Help of --format: of lists, and of single objects."""

T = TypeVar("T")
C = TypeVar("C")
_ID_WIDTH: Final = 12
_FLOOR: Final = 12
"""Columns of a table that are not shortened further: an ID is of use whole."""
_LINES_AT_ONCE: Final = 200


def echo(text: str = "") -> None:
    """A line to standard output."""
    click.echo(text)


def short_id(text: str, *, full: bool = False) -> str:
    """12 characters of an id, without ``sha256:``; all of it if ``full``."""
    return text if full else text.removeprefix("sha256:")[:_ID_WIDTH]


def list_options(command: Callable[..., T]) -> Callable[..., T]:
    """The flags every ``ls`` has: --filter, --format, --quiet."""
    command = click.option("-q", "--quiet", is_flag=True, help="Only display IDs.")(command)
    command = click.option("--format", "fmt", metavar="FORMAT", help=LIST_FORMATS)(command)
    return click.option(
        "-f", "--filter", "filters", multiple=True, metavar="NAME=VALUE", help="Show only what matches."
    )(command)


def print_rows(
    rows: Iterable[Row],
    *,
    columns: Sequence[Column],
    fmt: str | None = None,
    quiet: bool = False,
    quiet_field: str = "ID",
    headings: Mapping[str, str] | None = None,
    full: bool = False,
) -> None:
    """A list as asked for. ``headings`` name fields beyond ``columns`` that templates may use.

    On a terminal the table fits its width, unless it is to be ``full``; templates choose their own width.
    """
    if quiet and not fmt:
        _echo_all([str(row[quiet_field]) for row in rows])
        return
    if fmt in (None, "", "table"):
        room = None if full else columns_of(sys.stdout)
        _print_table([[str(row.get(field, "")) for field, _ in columns] for row in rows], [h for _, h in columns], room)
        return
    if fmt == "yaml":
        echo(_yaml(list(rows)))
        return
    if fmt is not None and fmt.startswith("table "):
        _print_template_table(fmt.removeprefix("table "), rows, {**dict(columns), **(headings or {})})
        return
    show = formatter(fmt or "", strict=True)
    _echo_all([show(row) for row in rows])


def formatter(fmt: str, *, strict: bool = False, zeros: Mapping[str, Any] | None = None) -> Callable[[Any], str]:
    """How ``--format`` writes one object: as one line of JSON, as a YAML document, or by a template.

    ``strict``: a field that the object itself lacks is an error; else it is that of ``zeros``. Raises ``UserError`` for a
    template that cannot be read.
    """
    if fmt == "json":
        return lambda item: json.dumps(item, ensure_ascii=False, separators=(",", ":"))
    if fmt == "yaml":
        return lambda item: f"---\n{_yaml(item)}"
    from fleet.cli.template import Template

    template = Template(_unescaped(fmt))
    return lambda item: template.render(_with_label(item), strict=strict, zeros=zeros)


def _unescaped(fmt: str) -> str:
    return fmt.replace("\\t", "\t").replace("\\n", "\n")


def _yaml(value: Any) -> str:
    import yaml

    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, default_flow_style=False).rstrip("\n")


def _with_label(item: Any) -> Any:
    """Docker's rows have ``{{.Label "name"}}`` beside ``{{.Labels}}``."""
    labels = item.get("Labels") if isinstance(item, dict) else None
    if not isinstance(labels, str):
        return item
    pairs = dict(pair.partition("=")[::2] for pair in labels.split(","))
    return {**item, "Label": lambda name: pairs.get(name, "")}


def _print_template_table(fmt: str, rows: Iterable[Row], headings: Mapping[str, str]) -> None:
    from fleet.cli.template import Template

    template = Template(_unescaped(fmt).strip(" "))

    def label(name: object) -> str:
        return str(name).rpartition(".")[2].replace("-", " ").replace("_", " ").upper()

    heading = template.heading({**headings, "Label": label})
    lines = [template.render(_with_label(row), strict=True) for row in rows]
    _print_table([line.split("\t") for line in lines], heading.split("\t"))


def _print_table(rows: list[list[str]], heading: list[str], room: int | None = None) -> None:
    """``room``: columns of the terminal that the lines may take; None is no limit."""
    tidy = clean if sys.stdout.isatty() else _one_line
    lines = [heading, *([tidy(cell) for cell in row] for row in rows)]
    count = max(len(line) for line in lines)
    widths = [max((width_of(line[i]) for line in lines if i < len(line)), default=0) for i in range(count)]
    if room is not None:
        floors = [min(width, max(_FLOOR, width_of(heading[i]))) for i, width in enumerate(widths)]
        widths = shrunk(widths, room=room - GAP * (count - 1), floors=floors)
        lines = [[cut(cell, width) for cell, width in zip(line, widths, strict=False)] for line in lines]
    gap = " " * GAP
    padded = (
        gap.join(pad(cell, widths[i]) if i < len(line) - 1 else cell for i, cell in enumerate(line)).rstrip()
        for line in lines
    )
    _echo_all(list(padded))


def _echo_all(lines: Sequence[str]) -> None:
    """Many lines in few writes, because click flushes each echo; few enough that a reader who left is noticed soon."""
    for start in range(0, len(lines), _LINES_AT_ONCE):
        click.echo("\n".join(lines[start : start + _LINES_AT_ONCE]))


def _one_line(text: str) -> str:
    return " ".join(text.split("\n")) if "\n" in text else text


def inspect_each(
    client: C,
    names: Sequence[str],
    get: Callable[[C, str], Any],
    *,
    fmt: str | None = None,
    pretty: Callable[[Any], str] | None = None,
) -> int:
    """Print objects as a JSON array, by a template, or ``pretty``; what is missing is told and makes the code 1."""
    found: list[Any] = []
    failed: list[errors.FleetError] = []
    for name in names:
        try:
            found.append(get(client, name))
        except (EngineError, errors.NotFoundError) as cause:
            failed.append(cause)
    if pretty is not None:
        for position, item in enumerate(found):
            echo(("\n" if position else "") + pretty(item))
    elif fmt == "yaml":
        echo(_yaml(found))
    elif fmt:
        show = formatter(fmt)
        for item in found:
            echo(show(item))
    else:
        echo(json.dumps(found, indent=4, ensure_ascii=False))
    for problem in failed:
        click.echo(f"Error: {problem}", err=True)
    return 1 if failed else 0


def each(names: Sequence[str], act: Callable[[str], object], *, quiet: bool = False) -> int:
    """``act`` on each name and print it; what fails is told, the others go on, and the code is 1."""
    code = 0
    for name in names:
        try:
            act(name)
        except EngineError as cause:
            click.echo(f"Error: {cause}", err=True)
            code = 1
        else:
            if not quiet:
                echo(name)
    return code


def print_warnings(answer: Any) -> None:
    """Warnings of an API answer, to standard error."""
    if isinstance(answer, dict):
        for key in ("Warnings", "Warning"):
            given = answer.get(key) or ()
            for warning in [given] if isinstance(given, str) else given:
                click.echo(f"Warning: {warning}", err=True)
