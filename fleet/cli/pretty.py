"""Objects as text for people: ``--pretty`` and ``info``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from fleet.api.client import EngineClient, EngineError
from fleet.cli import clock
from fleet.cli.service_rows import autoscale_bounds, mode_name

__all__ = ["info_text", "node_text", "scaling_lines", "service_text"]

Json = dict[str, Any]


class _Text:
    """Lines ``label: value`` with indentation; empty values are left out."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, label: str, value: object, *, level: int = 0) -> None:
        if value not in (None, "", 0, [], {}, ()):
            self.lines.append(f"{' ' * level}{label + ':':{20 - level}}{value}")

    def title(self, text: str, *, level: int = 0) -> None:
        self.lines.append(f"{' ' * level}{text}:")

    def entries(self, label: str, values: Json | None) -> None:
        if values:
            self.title(label)
            self.lines += [f" {key}={value}" for key, value in sorted(values.items())]

    def __str__(self) -> str:
        return "\n".join(self.lines)


def _duration(nanoseconds: int | None) -> str:
    if nanoseconds is None:
        return ""
    seconds = nanoseconds / 1e9
    return f"{seconds:g}s"


def _memory(size: int | None) -> str:
    return clock.memory_size(size) if size else ""


def _cpus(nano: int | None) -> str:
    return f"{nano / 1e9:g}" if nano else ""


_UPDATE: Final[tuple[tuple[str, str, Callable[[Any], str]], ...]] = (
    ("Parallelism", "Parallelism", str),
    ("Delay", "Delay", _duration),
    ("FailureAction", "On failure", str),
    ("Monitor", "Monitoring period", _duration),
    ("MaxFailureRatio", "Max failure ratio", lambda ratio: f"{ratio:g}"),
    ("Order", "Order", str),
    ("ProgressDeadline", "Progress deadline", _duration),
)


def service_text(item: Json, client: EngineClient) -> str:
    """A service as ``docker service inspect --pretty`` shows it."""
    spec, text = item["Spec"], _Text()
    template = spec["TaskTemplate"]
    container = template.get("ContainerSpec") or {}
    text.add("ID", item["ID"])
    text.add("Name", spec.get("Name"))
    text.entries("Labels", spec.get("Labels"))
    text.add("Service Mode", mode_name(spec).capitalize())
    text.add("Number of Replicas", (spec.get("Mode") or {}).get("Replicated", {}).get("Replicas"), level=1)
    if autoscale_bounds(spec):
        _autoscale(text, item)
    update = item.get("UpdateStatus") or {}
    if update.get("State"):
        text.title("UpdateStatus")
        text.add("State", update["State"], level=1)
        text.add("Started", clock.ago(update.get("StartedAt")), level=1)
        text.add("Completed", clock.ago(update.get("CompletedAt")), level=1)
        text.add("Message", update.get("Message"), level=1)
    placement = template.get("Placement") or {}
    if placement.get("Constraints") or placement.get("Preferences") or placement.get("MaxReplicas"):
        text.title("Placement")
        text.add("Constraints", ", ".join(placement.get("Constraints") or ()), level=1)
        spread = [(p.get("Spread") or {}).get("SpreadDescriptor", "") for p in placement.get("Preferences") or ()]
        text.add("Preferences", ", ".join(f"spread={name}" for name in spread), level=1)
        text.add("Max replicas", placement.get("MaxReplicas"), level=1)
    for key, title in (("UpdateConfig", "UpdateConfig"), ("RollbackConfig", "RollbackConfig")):
        if spec.get(key):
            text.title(title)
            for name, label, show in _UPDATE:
                text.add(label, show(spec[key].get(name, 0)), level=1)
    _container(text, container)
    _resources(text, template.get("Resources") or {})
    networks = [_network(target, client) for target in template.get("Networks") or ()]
    text.add("Networks", " ".join(networks))
    text.add("Endpoint Mode", (spec.get("EndpointSpec") or {}).get("Mode") or "vip")
    for port in (item.get("Endpoint") or {}).get("Ports") or ():
        shown = f"{port.get('PublishedPort', 0)} -> {port['TargetPort']}/{port.get('Protocol', 'tcp')}"
        text.add("Port", f"{shown} ({port.get('PublishMode', 'ingress')})", level=1)
    return str(text)


def _autoscale(text: _Text, item: Json) -> None:
    from fleet.model import wire
    from fleet.model.autoscale import explain_policy
    from fleet.model.service import ServiceSpec

    status = item.get("Autoscale") or {}
    text.title("Autoscale")
    text.add("Policy", explain_policy(wire.parse_builtins(item["Spec"], ServiceSpec, what="service spec")), level=1)
    for scaling in (status.get("Scalings") or ())[-1:]:
        text.add("Last scaled", f"{clock.ago(scaling['At'])}: {scaling['Reason']}", level=1)
    text.add("Held", status.get("Held"), level=1)


def scaling_lines(report: Json) -> list[str]:
    """``Autoscale`` of ``/fleet/v1/services/ID/placement``, in sentences."""
    lines = [f"Scaled automatically: {report['Policy']}"]
    lines += [f"  {clock.ago(each['At'])}: {each['Reason']}" for each in report["Scalings"]]
    if report["Held"]:
        lines.append(f"  held since {clock.ago(report['HeldSince'])}: {report['Held']}")
    return [*lines, f"  now: {report['Now'] or 'the manager that leads knows; this one is not it'}"]


def _container(text: _Text, container: Json) -> None:
    text.title("ContainerSpec")
    text.add("Image", container.get("Image"), level=1)
    text.add("Command", " ".join(container.get("Command") or ()), level=1)
    text.add("Args", " ".join(container.get("Args") or ()).replace("\n", "; ").rstrip("; "), level=1)
    text.add("Dir", container.get("Dir"), level=1)
    text.add("User", container.get("User"), level=1)
    text.add("Env", " ".join(container.get("Env") or ()), level=1)
    text.add("Stop grace", _duration(container.get("StopGracePeriod")), level=1)
    for mount in container.get("Mounts") or ():
        shown = f"{mount.get('Type')} {mount.get('Source', '')} -> {mount.get('Target')}"
        text.add("Mount", f"{shown} (read only)" if mount.get("ReadOnly") else shown, level=1)
    for key in ("Secrets", "Configs"):
        names = [
            f"{ref.get(f'{key[:-1]}Name')} at {(ref.get('File') or {}).get('Name')}" for ref in container.get(key) or ()
        ]
        text.add(key, ", ".join(names), level=1)


def _resources(text: _Text, resources: Json) -> None:
    for key in ("Reservations", "Limits"):
        given = resources.get(key) or {}
        if any(given.values()):
            text.title(key)
            text.add("CPU", _cpus(given.get("NanoCPUs")), level=1)
            text.add("Memory", _memory(given.get("MemoryBytes")), level=1)
            text.add("Processes", given.get("Pids"), level=1)


def _network(target: Json, client: EngineClient) -> str:
    try:
        return str(client.get(f"/networks/{target['Target']}", scope="swarm")["Name"])
    except EngineError:
        return str(target["Target"])


def node_text(item: Json) -> str:
    """A node as ``docker node inspect --pretty`` shows it."""
    text = _Text()
    description, status = item.get("Description") or {}, item.get("Status") or {}
    text.add("ID", item["ID"])
    text.add("Name", item["Spec"].get("Name"))
    text.entries("Labels", item["Spec"].get("Labels"))
    text.add("Hostname", description.get("Hostname"))
    text.add("Joined at", item.get("CreatedAt"))
    text.title("Status")
    text.add("State", str(status.get("State", "")).capitalize(), level=1)
    text.add("Message", status.get("Message"), level=1)
    text.add("Availability", str(item["Spec"].get("Availability", "")).capitalize(), level=1)
    text.add("Address", status.get("Addr"), level=1)
    manager = item.get("ManagerStatus")
    if manager:
        text.title("Manager Status")
        text.add("Address", manager.get("Addr"), level=1)
        text.add("Reachability", str(manager.get("Reachability", "")).capitalize(), level=1)
        text.add("Leader", "Yes" if manager.get("Leader") else "No", level=1)
    platform, resources = description.get("Platform") or {}, description.get("Resources") or {}
    text.title("Platform")
    text.add("Operating System", platform.get("OS"), level=1)
    text.add("Architecture", platform.get("Architecture"), level=1)
    text.title("Resources")
    text.add("CPUs", _cpus(resources.get("NanoCPUs")), level=1)
    text.add("Memory", _memory(resources.get("MemoryBytes")), level=1)
    engine = description.get("Engine") or {}
    text.add("Engine Version", engine.get("EngineVersion"))
    text.entries("Engine Labels", engine.get("Labels"))
    return str(text)


def info_text(found: Json) -> str:
    """``GET /info`` as text."""
    text = _Text()
    text.add("Name", found.get("Name"))
    text.add("Server Version", found.get("ServerVersion"))
    text.lines.append(f"{'Containers:':20}{found.get('Containers', 0)} ({found.get('ContainersRunning', 0)} running)")
    text.lines.append(f"{'Images:':20}{found.get('Images', 0)}")
    text.add("Storage Driver", found.get("Driver"))
    text.add("Logging Driver", found.get("LoggingDriver"))
    text.add("Cgroup Version", found.get("CgroupVersion"))
    text.add("Kernel Version", found.get("KernelVersion"))
    text.add("Operating System", found.get("OperatingSystem"))
    text.add("Architecture", found.get("Architecture"))
    text.add("CPUs", found.get("NCPU"))
    text.add("Total Memory", _memory(found.get("MemTotal")))
    text.add("Data Root", found.get("DockerRootDir"))
    swarm = found.get("Swarm") or {}
    text.add("Swarm", swarm.get("LocalNodeState") or "inactive")
    text.add("Error", swarm.get("Error"), level=1)
    text.add("NodeID", swarm.get("NodeID"), level=1)
    if swarm.get("NodeID"):
        text.add("Is Manager", "true" if swarm.get("ControlAvailable") else "false", level=1)
    text.add("Node Address", swarm.get("NodeAddr"), level=1)
    text.add("ClusterID", (swarm.get("Cluster") or {}).get("ID"), level=1)
    text.add("Managers", swarm.get("Managers"), level=1)
    text.add("Nodes", swarm.get("Nodes"), level=1)
    managers = ", ".join(manager.get("Addr", "") for manager in swarm.get("RemoteManagers") or ())
    text.add("Manager Addresses", managers, level=1)
    for warning in found.get("Warnings") or ():
        text.lines.append(warning if warning.startswith("WARNING:") else f"WARNING: {warning}")
    return str(text)
