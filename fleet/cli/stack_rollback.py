"""Putting a stack back as it was before a deployment that did not come about (``stack deploy --rollback-on-failure``).

Services that were changed get the spec they had, new ones go, and so do the networks, secrets and configs made for them. What the
daemon itself has rolled back meanwhile (``update_config.failure_action: rollback``) is found as it was and left. Services that
the files no longer have are removed last, once everything converged, so there is none to bring back. Labels of secrets and
configs that stay are not put back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fleet import errors
from fleet.api.client import EngineClient, EngineError
from fleet.cli import clock, converge
from fleet.cli.app import retry_conflicts
from fleet.cli.render import echo
from fleet.cli.stack_deployment import Deployment

__all__ = ["ROLLED_BACK", "remove_network", "roll_back"]

Json = dict[str, Any]

ROLLED_BACK: Final = 3
"""Exit code: what was asked for did not come about, and the stack is as it was before."""
_IN_USE: Final = (400, 403, 409)
_IN_USE_S: Final = 60.0
"""How long tasks that stop may still hold a network: longer than most grace periods."""
_POLL_S: Final = 0.1


def roll_back(deployment: Deployment, *, quiet: bool, timeout_ns: int | None, stable_ns: int) -> int:
    """Returns ``ROLLED_BACK``, or 130 when interrupted. Raises ``FleetError`` saying why the rollback did not come about."""
    client = deployment.client
    watches = []
    for service_id, name, before in reversed(deployment.changed):
        if before is None:
            echo(f"Removing service {name} (new)")
            _delete(client, f"/services/{service_id}")
        else:
            echo(f"Rolling back service {name} (id: {service_id})")
            _put_back(client, service_id, before)
            watches.append(converge.Watch(service_id, name, rollback_wanted=True))
    try:
        code = converge.wait(client, watches, quiet=quiet, timeout_ns=timeout_ns, stable_ns=stable_ns) if watches else 0
    except errors.FleetError as cause:
        raise errors.ConflictError(f"rolling back: {cause}") from cause
    if code:
        return code
    deadline = clock.monotonic() + _IN_USE_S
    for kind, name, object_id in reversed(deployment.made):
        echo(f"Removing {kind} {name} (new)")
        if kind == "network":
            remove_network(client, object_id, deadline=deadline)
        else:
            _delete(client, f"/{kind}s/{object_id}")
    return ROLLED_BACK


def _put_back(client: EngineClient, service_id: str, before: Mapping[str, Any]) -> None:
    """The spec of ``before`` again, with the registry login that belongs to it."""

    def attempt() -> None:
        found = client.get(f"/services/{service_id}", insertDefaults=False)
        if found["Spec"] == before["Spec"]:
            return  # the daemon has done it
        query = {"version": found["Version"]["Index"]}
        if found.get("PreviousSpec") == before["Spec"]:
            query["rollback"] = "previous"
        client.request("POST", f"/services/{service_id}/update", query=query, json_body=before["Spec"])

    retry_conflicts(attempt)


def _delete(client: EngineClient, path: str) -> None:
    try:
        client.delete(path)
    except EngineError as cause:
        if cause.status != 404:
            raise


def remove_network(client: EngineClient, network_id: str, *, deadline: float) -> None:
    """Delete it, again until ``deadline`` (monotonic) while tasks that are stopping still use it."""
    while True:
        try:
            _delete(client, f"/networks/{network_id}")
        except EngineError as cause:
            if cause.status not in _IN_USE or clock.monotonic() >= deadline:
                raise
            clock.sleep(_POLL_S)
        else:
            return
