"""Files of ``NAME=value`` lines, for ``env_file`` and ``--env-file``."""

from __future__ import annotations

from collections.abc import Mapping

from fleet import errors

__all__ = ["parse_env_file"]


def parse_env_file(text: str, *, environment: Mapping[str, str]) -> dict[str, str | None]:
    """``NAME=value`` lines, ``#`` comments, quotes around a whole value, a bare NAME takes the environment's value.

    Raises ``UserError`` whose text begins with ``:LINE:``.
    """
    variables: dict[str, str | None] = {}
    for number, line in enumerate(text.lstrip("\ufeff").splitlines(), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        stripped = stripped.removeprefix("export ").lstrip()
        name, separator, value = stripped.partition("=")
        name = name.rstrip()
        if not name or any(character.isspace() for character in name):
            raise errors.UserError(f":{number}: {line!r} is not NAME=value")
        value = value.strip()
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        variables[name] = value if separator else environment.get(name)
    return variables
