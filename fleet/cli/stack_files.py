"""A stack's name and its Compose files, read from where the command stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from fleet import errors
from fleet.cli.app import App, read_input

if TYPE_CHECKING:
    from fleet.compose.convert import Stack
    from fleet.compose.load import Loaded

__all__ = ["checked_name", "convert_files", "load_files"]

FILE_MAX: Final = 1024 * 1024
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")


def checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise errors.UserError(
            f"{name!r} is not a stack name; expected letters, digits, '-' and '_', at most 63, beginning with a letter or digit"
        )
    return name


def _read_files(paths: tuple[str, ...]) -> tuple[list[tuple[str, str]], str]:
    """(name, text) of each file and the directory relative paths start from: that of the first file."""
    files = [("stdin" if path == "-" else path, _text(read_input(path, size_max=FILE_MAX), path)) for path in paths]
    first = paths[0]
    return files, str(Path.cwd() if first == "-" else Path(first).resolve().parent)


def _text(data: bytes, path: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as cause:
        raise errors.UserError(f"{path} is not UTF-8 text (byte {cause.start})") from cause


def _environment(app: App, directory: str) -> dict[str, str]:
    """The caller's variables over those of a ``.env`` file beside the Compose file."""
    path = Path(directory) / ".env"
    if not path.is_file():
        return dict(app.environment)
    from fleet.compose.env_file import parse_env_file

    text = _text(read_input(str(path), size_max=FILE_MAX), str(path))
    try:
        found = parse_env_file(text, environment=app.environment)
    except errors.UserError as cause:
        raise errors.UserError(f"{path}{cause}") from cause
    return {**{name: value for name, value in found.items() if value is not None}, **app.environment}


def load_files(
    app: App, paths: tuple[str, ...], *, profiles: tuple[str, ...] = (), interpolate: bool = True
) -> tuple[Loaded, str, dict[str, str]]:
    from fleet.compose.load import load

    files, directory = _read_files(paths)
    environment = _environment(app, directory)

    def read(path: str) -> str:
        with (Path(directory) / path).open("rb") as file:
            data = file.read(FILE_MAX + 1)
        if len(data) > FILE_MAX:
            raise errors.TooLargeError(f"{path} is larger than the {FILE_MAX} bytes allowed")
        return _text(data, path)

    chosen = {*profiles, *filter(None, environment.get("COMPOSE_PROFILES", "").split(","))}
    loaded = load(files, environment=environment, interpolate_variables=interpolate, read=read, profiles=chosen)
    for warning in loaded.warnings:
        click.echo(f"Warning: {warning}", err=True)
    return loaded, directory, environment


def convert_files(app: App, paths: tuple[str, ...], name: str, *, profiles: tuple[str, ...]) -> Stack:
    from fleet.compose.convert import Sources, convert

    loaded, directory, environment = load_files(app, paths, profiles=profiles)

    def read_file(path: str, size_max: int) -> bytes:
        with (Path(directory) / path).open("rb") as file:
            return file.read(size_max + 1)

    sources = Sources(environment=environment, directory=directory, read_file=read_file)
    return convert(loaded.document, stack=name, sources=sources)
