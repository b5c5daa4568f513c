"""The newest shape of an answer as a client of an older version of the engine API expects it. Pure.

Renderers know the newest version alone; what dockerd takes back for older clients is here, one rule a version. Source: the
version history of the Docker Engine API. Fields that came later are not taken away where dockerd does not either.
"""

from __future__ import annotations

from typing import Any

from fleet.api.http import ApiVersion

__all__ = ["container_at", "image_at", "image_summary_at", "info_at"]

_NO_TIME = "0001-01-01T00:00:00Z"
_PREDEFINED = ("bridge", "host", "none")
_SHORT_ID = 12


def image_summary_at(version: ApiVersion, image: dict[str, Any]) -> dict[str, Any]:
    """An element of ``GET /images/json``."""
    if version < (1, 43) and not image["RepoTags"] and not image["RepoDigests"]:
        image = image | {"RepoTags": ["<none>:<none>"], "RepoDigests": ["<none>@<none>"]}
    return image | {"VirtualSize": image["Size"]} if version < (1, 44) else image


def image_at(version: ApiVersion, image: dict[str, Any]) -> dict[str, Any]:
    """The answer of ``GET /images/{name}/json``."""
    if version < (1, 44):
        image = {"Created": _NO_TIME, **image, "VirtualSize": image["Size"]}
    if version < (1, 45):
        image = image | {"Container": "", "ContainerConfig": image["Config"]}
    return image


def container_at(version: ApiVersion, container: dict[str, Any]) -> dict[str, Any]:
    """The answer of ``GET /containers/{id}/json``: the short id and the host's name were among the aliases."""
    if version >= (1, 45):
        return container
    own = (container["Id"][:_SHORT_ID], container["Config"]["Hostname"])
    settings = container["NetworkSettings"]
    networks = {
        name: endpoint
        if name in _PREDEFINED
        else endpoint | {"Aliases": list(dict.fromkeys((*(endpoint["Aliases"] or ()), *own)))}
        for name, endpoint in settings["Networks"].items()
    }
    return container | {"NetworkSettings": settings | {"Networks": networks}}


def info_at(version: ApiVersion, info: dict[str, Any]) -> dict[str, Any]:
    """The answer of ``GET /info``: security options were names alone."""
    if version >= (1, 25):
        return info
    names = [option.partition(",")[0].removeprefix("name=") for option in info["SecurityOptions"]]
    return info | {"SecurityOptions": names}
