"""What an image's tag means now, noted in the service, so that every node runs the same bytes (SEC-12)."""

from __future__ import annotations

from urllib.parse import quote

import click

from fleet import errors
from fleet.cli.app import App

__all__ = ["pinned"]


def pinned(app: App, image: str, *, headers: dict[str, str]) -> str:
    """``NAME:TAG@sha256:...`` as this host, another one or the registry has it; the image as it is, and a warning, when none of
    them knows it, as with docker."""
    if "@" in image or not image.strip():
        return image
    try:
        found = app.client.request("GET", f"/distribution/{quote(image, safe='/:')}/json", headers=headers)
        digest = str(found["Descriptor"]["digest"])
    except (errors.FleetError, KeyError, TypeError) as cause:
        reason = f" ({cause})" if isinstance(cause, errors.FleetError) else ""
        click.echo(
            f"image {image} could not be found on a node or a registry to record its digest{reason}. Each node will look for it "
            "by itself, possibly leading to different nodes running different versions of the image.",
            err=True,
        )
        return image
    tagged = image if ":" in image.rpartition("/")[2] else f"{image}:latest"
    return f"{tagged}@{digest}"
