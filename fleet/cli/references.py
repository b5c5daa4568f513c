"""Names of networks, secrets and configs -> ids, as the engine API wants them in a service spec."""

from __future__ import annotations

from typing import Any

from fleet import errors
from fleet.api.client import EngineClient
from fleet.cli.app import part

__all__ = ["network_id", "object_id", "resolve"]


def network_id(client: EngineClient, name: str) -> str:
    """Id of a swarm network; the predefined ones go by name. Raises ``EngineError`` (404) when there is none."""
    if name in ("host", "none", "bridge"):
        return name
    return str(client.get(f"/networks/{part(name)}", scope="swarm")["Id"])


def object_id(client: EngineClient, noun: str, name: str) -> str:
    """Id of the secret or config that is called exactly ``name``. Raises ``NotFoundError``."""
    for found in client.get(f"/{noun}s", filters={"name": [name]}) or ():
        if found["Spec"]["Name"] == name or found["ID"] == name:
            return str(found["ID"])
    raise errors.NotFoundError(f"{noun} {name} not found; 'fleet {noun} ls' shows what there is")


def resolve(client: EngineClient, flags: dict[str, Any], *, suffix: str = "") -> dict[str, Any]:
    """``flags`` with networks, secrets and configs looked up; ``suffix`` is ``_add`` for an update."""
    resolved = dict(flags)
    resolved[f"network{suffix}"] = tuple(
        {**given, "Target": network_id(client, given["Target"])} for given in flags[f"network{suffix}"]
    )
    for noun in ("secret", "config"):
        title = noun.capitalize()
        resolved[f"{noun}{suffix}"] = tuple(
            {
                "File": given["File"],
                f"{title}ID": object_id(client, noun, given["Source"]),
                f"{title}Name": given["Source"],
            }
            for given in flags[f"{noun}{suffix}"]
        )
    if suffix:
        resolved["network_rm"] = tuple(network_id(client, name) for name in flags["network_rm"])
    return resolved
