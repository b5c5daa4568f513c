"""``fleet man``: manual pages, written from the same commands and options as ``--help``, so that they cannot differ from it.

Format: man(7), as groff and mandoc read it. The pages carry no date, so that the same commands give the same bytes.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Final

import click

from fleet import errors
from fleet.cli.render import echo

__all__ = ["man", "page", "tree"]

_EXIT: Final = (
    ("0", "Done."),
    ("1", "The daemon said no, or something failed."),
    ("2", "The command line or a file was wrong."),
    ("130", "Interrupted."),
    ("141", "Whoever read the output stopped reading."),
)
_ENVIRONMENT: Final = (
    ("FLEET_HOST, DOCKER_HOST", "Daemon to talk to, as with --host; the first one that is set counts."),
    ("FLEET_CONTEXT, DOCKER_CONTEXT", "Context to use when no host is named."),
    ("FLEET_CONFIG", "Folder of contexts, instead of ~/.config/fleet."),
    ("DOCKER_CONFIG", "Folder of registry logins and of the contexts of Docker's client, instead of ~/.docker."),
    ("NO_COLOR", "When set, nothing is written in colour."),
)


@click.command()
@click.option(
    "-o", "--output", metavar="DIR", help="Write all pages into this folder, such as /usr/local/share/man/man1."
)
@click.argument("names", metavar="[COMMAND]...", nargs=-1)
@click.pass_context
def man(ctx: click.Context, *, output: str | None, names: tuple[str, ...]) -> None:
    """Show the manual page of a command, or write all of them.

    For example: fleet man service create
    """
    root = click.Context(ctx.find_root().command, info_name="fleet")
    if output is not None:
        if names:
            raise click.UsageError("--output writes the pages of all commands; leave COMMAND away")
        _write_all(root, Path(output))
        return
    text = page(_find(root, names))
    pager = shutil.which("man") if sys.stdout.isatty() else None
    if pager:
        subprocess.run([pager, "-l", "-"], input=text.encode(), check=False)
    else:
        echo(text.rstrip("\n"))


def _write_all(root: click.Context, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        pages = [(f"{_name(ctx)}.1", page(ctx)) for ctx in tree(root)]
        for name, text in pages:
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as cause:
        raise errors.UserError(f"cannot write manual pages to {folder}: {cause.strerror or cause}") from cause
    click.echo(f"{len(pages)} pages written to {folder}", err=True)


def _find(ctx: click.Context, names: tuple[str, ...]) -> click.Context:
    for name in names:
        command = ctx.command.get_command(ctx, name) if isinstance(ctx.command, click.Group) else None
        if command is None:
            raise errors.UserError(f"'{ctx.command_path} {name}' is not a command; see {ctx.command_path} --help")
        ctx = click.Context(command, info_name=name, parent=ctx)
    return ctx


def tree(ctx: click.Context) -> Iterator[click.Context]:
    """The command of ``ctx`` and all below it that are not hidden, each as a context of its own."""
    yield ctx
    for child in _children(ctx):
        yield from tree(child)


def _children(ctx: click.Context) -> Iterator[click.Context]:
    if isinstance(ctx.command, click.Group):
        for name in ctx.command.list_commands(ctx):
            command = ctx.command.get_command(ctx, name)
            if command is not None and not command.hidden:
                yield click.Context(command, info_name=name, parent=ctx)


def _name(ctx: click.Context) -> str:
    """``fleet-service-create``."""
    return ctx.command_path.replace(" ", "-")


def page(ctx: click.Context) -> str:
    """The manual page of one command, roff."""
    command, name = ctx.command, _name(ctx)
    summary, paragraphs = _texts(command)
    lines = [
        f'.TH "{_escaped(name.upper())}" 1 "" "fleet {metadata.version("fleet")}" "fleet manual"',
        ".nh",
        ".SH NAME",
        f"{_escaped(name)} \\- {_escaped(summary)}",
        ".SH SYNOPSIS",
        f"\\fB{_escaped(ctx.command_path)}\\fR {_escaped(' '.join(command.collect_usage_pieces(ctx)))}".rstrip(),
        ".SH DESCRIPTION",
    ]
    for position, paragraph in enumerate(paragraphs):
        lines += [".PP", *_text(paragraph)] if position else _text(paragraph)
    records = [record for option in command.get_params(ctx) if (record := option.get_help_record(ctx)) is not None]
    if records:
        lines.append(".SH OPTIONS")
        for flags, text in records:
            lines += [".TP", f"\\fB{_escaped(flags)}\\fR", *_text(text or "")]
    children = list(_children(ctx))
    if children:
        lines.append(".SH COMMANDS")
        for child in children:
            lines += [".TP", f"\\fB{_escaped(_name(child))}\\fR(1)", *_text(_texts(child.command)[0])]
    if ctx.parent is None:
        lines += [*_list("ENVIRONMENT", _ENVIRONMENT), *_list("EXIT STATUS", _EXIT)]
    related = [*_ancestors(ctx), *(children if ctx.parent is not None else [])]
    if related:
        lines += [".SH SEE ALSO", ",\n".join(f"\\fB{_escaped(_name(other))}\\fR(1)" for other in related)]
    return "\n".join(lines) + "\n"


def _ancestors(ctx: click.Context) -> list[click.Context]:
    found = []
    while ctx.parent is not None:
        ctx = ctx.parent
        found.append(ctx)
    return found[::-1]


def _list(title: str, items: tuple[tuple[str, str], ...]) -> list[str]:
    lines = [f".SH {title}"]
    for term, text in items:
        lines += [".TP", f"\\fB{_escaped(term)}\\fR", *_text(text)]
    return lines


def _texts(command: click.Command) -> tuple[str, list[str]]:
    """(one line, paragraphs) of a command's help."""
    import inspect

    text = inspect.cleandoc(command.help or command.short_help or "").partition("\f")[0]
    paragraphs = [part.strip("\n") for part in text.split("\n\n") if part.strip()]
    first = " ".join(paragraphs[0].split()) if paragraphs else (command.name or "")
    return first.rstrip("."), paragraphs or [first]


def _text(text: str) -> list[str]:
    """A paragraph as lines; one that begins with ``\\b`` keeps its line ends, as in ``--help``."""
    if text.startswith("\b"):
        return [".nf", *(_escaped(line) for line in text.lstrip("\b\n").split("\n")), ".fi"]
    return [_escaped(" ".join(text.split()))]


def _escaped(text: str) -> str:
    """Nothing in it is a request or an escape of roff; hyphens stay what people can copy."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{text}" if text.startswith((".", "'")) else text
