"""Changing the swarm's settings: read, change, write, again if somebody else wrote meanwhile."""

from __future__ import annotations

from typing import Any

from fleet.cli.app import App, retry_conflicts
from fleet.cli.service_flags import Parsed
from fleet.compose import values

Json = dict[str, Any]

DURATION = Parsed(values.parse_duration_ns, name="DURATION")


def update_swarm(app: App, spec: Json | None = None, **rotate: bool) -> None:
    retry_conflicts(lambda: _update_once(app, spec or {}, rotate))


def _update_once(app: App, spec: Json, rotate: dict[str, bool]) -> None:
    current = app.client.get("/swarm")
    names = ("rotateWorkerToken", "rotateManagerToken", "rotateManagerUnlockKey")
    query = {name: "true" if rotate.get(name) else "false" for name in names}
    app.client.post("/swarm/update", {**current["Spec"], **spec}, version=current["Version"]["Index"], **query)
