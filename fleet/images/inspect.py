"""Images in the shapes of the Docker Engine API (v1.47: ImageSummary, ImageInspect, HistoryResponseItem)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fleet.images.image import Image
from fleet.images.manifest import ImageIndex, parse_manifest
from fleet.images.reference import parse_reference
from fleet.images.sources import Source

__all__ = ["image_summary", "image_inspect", "image_history", "distribution_inspect"]

_NO_TIME = "0001-01-01T00:00:00Z"


def image_summary(image: Image, *, containers: int = -1) -> dict[str, Any]:
    """One element of ``GET /images/json``; ``containers`` is how many use it, -1 for not counted."""
    return {
        "Id": image.id,
        "ParentId": "",
        "RepoTags": list(image.references),
        "RepoDigests": list(image.repo_digests),
        "Created": int(image.created.timestamp()) if image.created else 0,
        "Size": image.size_bytes,
        "SharedSize": -1,
        "Labels": dict(image.config.labels) or None,
        "Containers": containers,
    }


def image_inspect(image: Image) -> dict[str, Any]:
    """The answer of ``GET /images/{name}/json``."""
    config = image.config
    inner: dict[str, Any] = {
        "Hostname": "",
        "Domainname": "",
        "User": config.user,
        "AttachStdin": False,
        "AttachStdout": False,
        "AttachStderr": False,
        "Tty": False,
        "OpenStdin": False,
        "StdinOnce": False,
        "Env": list(config.env),
        "Cmd": list(config.cmd) or None,
        "Image": "",
        "Volumes": {path: {} for path in config.volumes} or None,
        "WorkingDir": config.working_dir,
        "Entrypoint": list(config.entrypoint) or None,
        "OnBuild": list(config.on_build) or None,
        "Labels": dict(config.labels) or None,
    }
    if config.exposed_ports:
        inner["ExposedPorts"] = {port: {} for port in config.exposed_ports}
    if config.stop_signal:
        inner["StopSignal"] = config.stop_signal
    if config.healthcheck:
        inner["Healthcheck"] = dict(config.healthcheck)
    if config.shell:
        inner["Shell"] = list(config.shell)
    layers = [str(path) for path in image.layer_dirs]
    return {
        "Id": image.id,
        "RepoTags": list(image.references),
        "RepoDigests": list(image.repo_digests),
        "Parent": "",
        "Comment": image.comment,
        **({"Created": _time(image.created)} if image.created else {}),
        "DockerVersion": "",
        "Author": image.author,
        "Config": inner,
        "Architecture": config.architecture,
        **({"Variant": config.variant} if config.variant else {}),
        "Os": config.os,
        "Size": image.size_bytes,
        "GraphDriver": {
            "Name": "overlay2",
            "Data": {"UpperDir": layers[0], **({"LowerDir": ":".join(layers[1:])} if layers[1:] else {})},
        },
        "RootFS": {"Type": "layers", "Layers": list(image.diff_ids)},
        "Metadata": {"LastTagTime": _NO_TIME},
    }


def image_history(image: Image) -> list[dict[str, Any]]:
    """The answer of ``GET /images/{name}/history``: newest first; only the newest step has an id and names."""
    sizes = list(image.layer_sizes)
    steps: list[dict[str, Any]] = [
        {
            "Id": "<missing>",
            "Created": int(entry.created.timestamp()) if entry.created else 0,
            "CreatedBy": entry.created_by,
            "Tags": None,
            "Size": sizes.pop(0) if not entry.empty_layer and sizes else 0,
            "Comment": entry.comment,
        }
        for entry in image.history
    ]
    steps += [  # images whose history says less than their layers
        {"Id": "<missing>", "Created": 0, "CreatedBy": "", "Tags": None, "Size": size, "Comment": ""} for size in sizes
    ]
    if steps:
        steps[-1] |= {"Id": image.id, "Tags": list(image.references) or None}
    return steps[::-1]


async def distribution_inspect(reference: str, source: Source) -> dict[str, Any]:
    """The answer of ``GET /distribution/{name}/json``: what a registry has under a name, without fetching it.

    Platforms are listed for indexes only; for a single manifest the list is empty, which every scheduler reads as
    "any".
    """
    manifest = await source.manifest(str(parse_reference(reference)))
    document = parse_manifest(manifest)
    platforms = []
    if isinstance(document, ImageIndex):
        for item in document.manifests:
            if item.platform is not None and item.platform.os not in {"", "unknown"}:
                platform = {"architecture": item.platform.architecture, "os": item.platform.os}
                platforms.append(platform | ({"variant": item.platform.variant} if item.platform.variant else {}))
    return {
        "Descriptor": {"mediaType": manifest.media_type, "digest": manifest.digest, "size": len(manifest.body)},
        "Platforms": platforms,
    }


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
