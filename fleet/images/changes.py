"""Dockerfile-like lines that change an image's configuration: ``docker import --change``, ``docker commit --change``.

The instructions that change nothing but the configuration, read as the Dockerfile reference says: exec form is a JSON
array, anything else is shell form; words of ENV, LABEL, EXPOSE and VOLUME are split by shell quoting rules.
"""

from __future__ import annotations

import json
import posixpath
import re
import shlex
from collections.abc import Callable, Sequence
from typing import Any

from fleet.errors import UserError

__all__ = ["apply_changes"]

_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?", re.ASCII | re.IGNORECASE)
_SIGNAL = re.compile(r"(?:SIG)?[A-Z][A-Z0-9+-]{1,15}|[0-9]{1,2}", re.ASCII)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)", re.ASCII)
_NANOSECONDS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_HEALTH_OPTIONS = {
    "interval": "Interval",
    "timeout": "Timeout",
    "start-period": "StartPeriod",
    "start-interval": "StartInterval",
    "retries": "Retries",
}

Config = dict[str, Any]


def apply_changes(config: Config, changes: Sequence[str]) -> Config:
    """The ``config`` object (Docker's field names) with each line applied in turn; the argument is left alone.

    Raises ``UserError`` quoting the line and saying what is wrong with it.
    """
    result = json.loads(json.dumps(config))
    for line in changes:
        instruction, _, argument = line.strip().partition(" ")
        apply = _INSTRUCTIONS.get(instruction.upper())
        if apply is None:
            raise UserError(f"change {line!r}: {instruction.upper()} is not one of {', '.join(sorted(_INSTRUCTIONS))}")
        if not argument.strip():
            raise UserError(f"change {line!r}: {instruction.upper()} needs an argument")
        try:
            apply(result, argument.strip())
        except ValueError as error:
            raise UserError(f"change {line!r}: {error}") from error
    assert isinstance(result, dict)
    return result


def _exec_form(argument: str) -> list[str] | None:
    if not argument.startswith("["):
        return None
    try:
        words = json.loads(argument)
    except ValueError:
        return None  # Docker falls back to shell form as well: `[ -f x ] && y`
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError("the exec form is a JSON array of strings")
    return words


def _command(config: Config, argument: str) -> list[str]:
    words = _exec_form(argument)
    return words if words is not None else [*(config.get("Shell") or ["/bin/sh", "-c"]), argument]


def _cmd(config: Config, argument: str) -> None:
    config["Cmd"] = _command(config, argument)


def _entrypoint(config: Config, argument: str) -> None:
    config["Entrypoint"] = _command(config, argument)


def _pairs(argument: str) -> list[tuple[str, str]]:
    """``K=V K2="v 2"``, or the old ``K the rest``."""
    words = shlex.split(argument)
    if words and "=" not in words[0]:
        key, _, value = argument.partition(" ")
        if not value:
            raise ValueError("must be NAME=VALUE")
        return [(key, value.strip())]
    pairs = [word.partition("=") for word in words]
    for key, equals, _ in pairs:
        if not key or not equals:
            raise ValueError("must be NAME=VALUE")
    return [(key, value) for key, _, value in pairs]


def _env(config: Config, argument: str) -> None:
    env: list[str] = config.get("Env") or []
    for key, value in _pairs(argument):
        env = [entry for entry in env if entry.partition("=")[0] != key] + [f"{key}={value}"]
    config["Env"] = env


def _label(config: Config, argument: str) -> None:
    config["Labels"] = {**(config.get("Labels") or {}), **dict(_pairs(argument))}


def _expose(config: Config, argument: str) -> None:
    ports = dict(config.get("ExposedPorts") or {})
    for word in shlex.split(argument):
        match = _PORT.fullmatch(word)
        first = int(match[1]) if match else 0
        last = int(match[2]) if match and match[2] else first
        if match is None or not 1 <= first <= last <= 65535:
            raise ValueError(f"{word!r} is not a port (80, 80/udp, 8000-8010)")
        ports |= {f"{port}/{(match[3] or 'tcp').lower()}": {} for port in range(first, last + 1)}
    config["ExposedPorts"] = ports


def _volume(config: Config, argument: str) -> None:
    words = _exec_form(argument)
    paths = words if words is not None else shlex.split(argument)
    if not all(paths):
        raise ValueError("a volume needs a path")
    config["Volumes"] = {**(config.get("Volumes") or {}), **{path: {} for path in paths}}


def _work_dir(config: Config, argument: str) -> None:
    config["WorkingDir"] = posixpath.normpath(posixpath.join("/", config.get("WorkingDir") or "/", argument))


def _user(config: Config, argument: str) -> None:
    if len(argument.split()) != 1:
        raise ValueError("exactly one user")
    config["User"] = argument


def _stop_signal(config: Config, argument: str) -> None:
    if not _SIGNAL.fullmatch(argument):
        raise ValueError(f"{argument!r} is not a signal (SIGTERM, TERM or a number)")
    config["StopSignal"] = argument


def _shell(config: Config, argument: str) -> None:
    words = _exec_form(argument)
    if not words:
        raise ValueError('must be a JSON array: ["/bin/bash", "-c"]')
    config["Shell"] = words


def _on_build(config: Config, argument: str) -> None:
    config["OnBuild"] = [*(config.get("OnBuild") or []), argument]


def _healthcheck(config: Config, argument: str) -> None:
    result: Config = {}
    while argument.startswith("--"):
        option, _, argument = argument.partition(" ")
        name, _, value = option.removeprefix("--").partition("=")
        key = _HEALTH_OPTIONS.get(name)
        if key is None:
            raise ValueError(f"--{name} is not one of {', '.join('--' + known for known in _HEALTH_OPTIONS)}")
        if key == "Retries" and not value.isdecimal():
            raise ValueError(f"--retries={value}: not a number")
        result[key] = int(value) if key == "Retries" else _duration_ns(value)
        argument = argument.strip()
    kind, _, command = argument.partition(" ")
    if kind.upper() == "NONE" and not command and not result:
        config["Healthcheck"] = {"Test": ["NONE"]}
        return
    command = command.strip()
    if kind.upper() != "CMD" or not command:
        raise ValueError("must be NONE, or CMD and a command")
    words = _exec_form(command)
    result["Test"] = ["CMD", *words] if words is not None else ["CMD-SHELL", command]
    config["Healthcheck"] = result


def _duration_ns(text: str) -> int:
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is not a duration (30s, 1m30s, 500ms)")
    return sum(int(float(number) * _NANOSECONDS[unit]) for number, unit in parts)


_INSTRUCTIONS: dict[str, Callable[[Config, str], None]] = {
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "HEALTHCHECK": _healthcheck,
    "LABEL": _label,
    "ONBUILD": _on_build,
    "SHELL": _shell,
    "STOPSIGNAL": _stop_signal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _work_dir,
}
