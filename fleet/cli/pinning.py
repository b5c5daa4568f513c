"""What an image's tag means now, noted in the service, so that every node runs the same bytes (SEC-12)."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING
from urllib.parse import quote

import click

from fleet import errors
from fleet.cli.app import App

if TYPE_CHECKING:
    from fleet.model.service import ServiceSpec

__all__ = ["is_pin_of", "pin_services", "pinned", "tagged"]


def tagged(image: str) -> str:
    """With the tag that is meant where none is said."""
    return image if ":" in image.rpartition("/")[2] else f"{image}:latest"


def is_pin_of(pin: str, image: str) -> bool:
    """Whether a service that has ``pin`` was made from ``image``, which names no digest."""
    return "@" not in image and pin.partition("@")[0] in (image, tagged(image))


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
    return f"{tagged(image)}@{digest}"


def pin_services(
    app: App, services: Collection[ServiceSpec], *, running: Collection[str], mode: str, with_auth: bool
) -> tuple[ServiceSpec, ...]:
    """A stack's services with pinned images, each image asked for once; ``mode`` as of ``docker stack deploy --resolve-image``:
    ``always``, ``never``, or ``changed``: those that no service of the stack has by now (``running``, pinned ones)."""
    import msgspec

    pins: dict[str, str] = {}
    found = []
    for spec in services:
        container = spec.task_template.container_spec
        image = container.image
        if mode == "never" or (mode == "changed" and any(is_pin_of(pin, image) for pin in running)):
            found.append(spec)
            continue
        if image not in pins:
            headers: dict[str, str] = {}
            if with_auth:
                from fleet.cli.registry_auth import auth_headers

                headers = auth_headers(image, app.environment)
            pins[image] = pinned(app, image, headers=headers)
        template = msgspec.structs.replace(
            spec.task_template, container_spec=msgspec.structs.replace(container, image=pins[image])
        )
        found.append(msgspec.structs.replace(spec, task_template=template))
    return tuple(found)
