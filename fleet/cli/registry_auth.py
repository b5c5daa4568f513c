"""Registry logins from Docker's own file, as the header the engine API takes."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path

from fleet import errors

__all__ = ["auth_headers"]

_FILE_MAX = 1024 * 1024
_HUB = "https://index.docker.io/v1/"


def registry_of(image: str) -> str:
    """The host an image is pulled from, as Docker's file names it."""
    first, separator, _ = image.partition("/")
    if separator and ("." in first or ":" in first or first == "localhost"):
        return first
    return _HUB


def auth_headers(image: str, environment: Mapping[str, str]) -> dict[str, str]:
    """``X-Registry-Auth`` for the image's registry from ``config.json``; no header when there is no login.

    Raises ``UserError`` when the file is unreadable or leaves the login to a credential helper, which fleet does not run.
    """
    folder = environment.get("DOCKER_CONFIG") or f"{environment.get('HOME', '/root')}/.docker"
    path = Path(folder) / "config.json"
    registry = registry_of(image)
    try:
        with path.open("rb") as file:
            config = json.loads(file.read(_FILE_MAX))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as cause:
        raise errors.UserError(f"cannot read registry logins from {path}: {cause}") from cause
    if not isinstance(config, dict):
        raise errors.UserError(f"cannot read registry logins from {path}: not a JSON object")
    entry = (config.get("auths") or {}).get(registry)
    if entry is None:
        return {}
    if not entry.get("auth"):
        raise errors.UserError(
            f"{path} leaves the login for {registry} to a credential helper; fleet reads logins from the file alone"
        )
    try:
        user, _, password = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
    except ValueError as cause:
        raise errors.UserError(f"the login for {registry} in {path} is not readable") from cause
    body = json.dumps({"username": user, "password": password, "serveraddress": registry})
    return {"X-Registry-Auth": base64.urlsafe_b64encode(body.encode()).decode()}
