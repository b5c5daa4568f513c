"""``/distribution/{name}/json``: what a reference means now - digest and platforms - from this host, its peers or the registry.

Clients ask before they create a service and pin the digest, so that every node runs the same bytes whatever its tags say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from fleet import errors
from fleet.agent.http.image_routes import PullSources
from fleet.agent.image_sources import close_all
from fleet.api.http import json_response
from fleet.images import ImageStore, parse_registry_auth
from fleet.images.manifest import INDEX_TYPES, Manifest
from fleet.images.sources import Source

__all__ = ["distribution_routes"]


def distribution_routes(images: ImageStore, sources_for: PullSources) -> APIRouter:
    """The router."""
    routes = APIRouter()

    @routes.get("/distribution/{name:path}/json")
    async def inspect(name: str, request: Request) -> Response:
        credentials = parse_registry_auth(request.headers.get("x-registry-auth", ""))
        try:
            manifest = images.manifest(name)
        except errors.NotFoundError:
            manifest = await _ask(name, await sources_for(name, credentials))
        return json_response(
            {
                "Descriptor": {
                    "mediaType": manifest.media_type,
                    "digest": manifest.digest,
                    "size": len(manifest.body),
                },
                "Platforms": _platforms(manifest, images, name),
            }
        )

    return routes


async def _ask(name: str, sources: Sequence[Source]) -> Manifest:
    """Whoever answers first. Raises ``UnauthorizedError`` when a login could help, else ``NotFoundError``."""
    problems: list[errors.FleetError] = []
    try:
        for source in sources:
            try:
                return await source.manifest(name)
            except errors.FleetError as cause:
                problems.append(cause)
    finally:
        await close_all(sources)
    text = "; ".join(str(problem) for problem in problems)
    if any(isinstance(problem, errors.UnauthorizedError) for problem in problems):
        raise errors.UnauthorizedError(text)
    raise errors.NotFoundError(f"no such image: {name}: {text}")


def _platforms(manifest: Manifest, images: ImageStore, name: str) -> list[dict[str, Any]]:
    if manifest.media_type in INDEX_TYPES:
        entries = msgspec.json.decode(manifest.body).get("manifests", ())
        return [e["platform"] for e in entries if e.get("platform", {}).get("os") not in (None, "unknown")]
    try:
        config = images.get(name).config
    except errors.NotFoundError:
        return []
    return [{"architecture": config.architecture, "os": config.os}]
