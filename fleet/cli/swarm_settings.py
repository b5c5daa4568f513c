"""The swarm's settings as flags, and changing them: read, change, write, again if somebody else wrote meanwhile."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from fleet.cli.app import App, retry_conflicts
from fleet.cli.service_flags import Parsed
from fleet.compose import values

Json = dict[str, Any]

DURATION = Parsed(values.parse_duration_ns, name="DURATION")
_PEM_MAX: Final = 64 * 1024


def external_ca(text: str) -> Json:
    """``protocol=cfssl,url=...[,cacert=FILE][,OPTION=VALUE...]`` as the API has it. Raises ``UsageError``."""
    found: dict[str, str] = {}
    for part in next(csv.reader([text]), []):
        key, equals, value = part.partition("=")
        if not equals or not value:
            raise click.UsageError(f"--external-ca {text!r}: expected key=value pairs, found {part!r}")
        found[key.strip().lower()] = value.strip()
    if missing := [key for key in ("protocol", "url") if key not in found]:
        raise click.UsageError(f"--external-ca {text!r}: {' and '.join(missing)} missing")
    ca: Json = {"Protocol": found.pop("protocol"), "URL": found.pop("url")}
    if path := found.pop("cacert", ""):
        try:
            with Path(path).open(encoding="ascii") as file:
                ca["CACert"] = file.read(_PEM_MAX)
        except (OSError, UnicodeDecodeError) as cause:
            raise click.UsageError(f"--external-ca: cacert={path}: {cause}") from cause
    return {**ca, "Options": found} if found else ca


SNAPSHOTS = (
    click.option(
        "--snapshot-interval",
        type=click.IntRange(min=1),
        metavar="N",
        help="Log entries between snapshots of the state.",
    ),
    click.option(
        "--max-snapshots", type=click.IntRange(min=0), metavar="N", help="Older snapshots kept beside the newest."
    ),
)


def snapshot_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Both; they count from the next start of each manager's etcd on."""
    for option in SNAPSHOTS:
        command = option(command)
    return command


EXTERNAL_CA = click.option(
    "--external-ca",
    metavar="protocol=cfssl,url=URL[,cacert=FILE]",
    multiple=True,
    help="Authority outside the swarm that signs the nodes' certificates.",
)


def update_swarm(app: App, spec: Json | None = None, **rotate: bool) -> None:
    retry_conflicts(lambda: _update_once(app, spec or {}, rotate))


def _update_once(app: App, spec: Json, rotate: dict[str, bool]) -> None:
    current = app.client.get("/swarm")
    names = ("rotateWorkerToken", "rotateManagerToken", "rotateManagerUnlockKey")
    query = {name: "true" if rotate.get(name) else "false" for name in names}
    if rotate.get("rotateSealingKey"):
        query["rotateSealingKey"] = "true"  # fleet's own
    app.client.post("/swarm/update", {**current["Spec"], **spec}, version=current["Version"]["Index"], **query)
