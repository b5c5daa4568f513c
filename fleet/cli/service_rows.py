"""Services as ``service ls`` shows them: what a list needs of a spec, without the flags that make one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from fleet.cli.render import short_id

__all__ = ["AUTOSCALE_PREFIX", "COLUMNS", "autoscale_bounds", "mode_name", "service_rows"]

Json = dict[str, Any]

AUTOSCALE_PREFIX: Final = "fleet.autoscale."
COLUMNS: Final = (
    ("ID", "ID"),
    ("Name", "NAME"),
    ("Mode", "MODE"),
    ("Replicas", "REPLICAS"),
    ("Image", "IMAGE"),
    ("Ports", "PORTS"),
)


def service_rows(found: Iterable[Json]) -> list[Json]:
    """Rows of ``service ls``, by name."""
    return [_row(item) for item in sorted(found, key=lambda item: str(item["Spec"].get("Name", "")))]


def _row(item: Json) -> Json:
    spec = item["Spec"]
    status = item.get("ServiceStatus") or {}
    running, desired = status.get("RunningTasks", 0), status.get("DesiredTasks", 0)
    replicas = f"{running}/{desired}"
    job = (spec.get("Mode") or {}).get("ReplicatedJob")
    if job is not None:
        replicas += f" ({status.get('CompletedTasks', 0)}/{job.get('TotalCompletions', 1)} completed)"
    if bounds := autoscale_bounds(spec):
        replicas += f" (auto {bounds[0]}-{bounds[1]})"
    most = (spec["TaskTemplate"].get("Placement") or {}).get("MaxReplicas")
    if most:
        replicas += f" (max {most} per node)"
    image = str((spec["TaskTemplate"].get("ContainerSpec") or {}).get("Image", ""))
    return {
        "ID": short_id(item["ID"]),
        "Name": spec.get("Name", ""),
        "Mode": mode_name(spec),
        "Replicas": replicas,
        "Image": image.partition("@")[0],
        "Ports": ", ".join(_port(port) for port in (item.get("Endpoint") or {}).get("Ports") or ()),
    }


def _port(port: Json) -> str:
    published = port.get("PublishedPort", 0)
    return f"*:{published}->{port['TargetPort']}/{port.get('Protocol', 'tcp')}" if published else ""


def autoscale_bounds(spec: Json) -> tuple[str, str] | None:
    """Fewest and most tasks as the service's labels say; None for one that is scaled by hand."""
    labels = spec.get("Labels") or {}
    most = labels.get(f"{AUTOSCALE_PREFIX}max")
    return (labels.get(f"{AUTOSCALE_PREFIX}min", "1"), most) if most else None


def mode_name(spec: Json) -> str:
    """``replicated``, ``global``, ``replicated job`` or ``global job``, as Docker's tables say."""
    names = {
        "Replicated": "replicated",
        "Global": "global",
        "ReplicatedJob": "replicated job",
        "GlobalJob": "global job",
    }
    found = [name for key, name in names.items() if (spec.get("Mode") or {}).get(key) is not None]
    return found[0] if found else "replicated"
