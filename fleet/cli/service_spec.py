"""Flags -> service spec, as pure functions over the engine API's JSON: ``create_spec`` and ``update_spec``.

The spec is kept as the JSON the daemon gave: what this command does not know stays as it is. Networks, secrets and
configs in ``flags`` have been looked up already (``references``).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Final

from fleet import errors
from fleet.cli.service_flags import LABEL_FLAGS, LIST_FLAGS, MAP_FLAGS, VALUE_FLAGS, ListFlag
from fleet.cli.service_rows import AUTOSCALE_PREFIX, mode_name
from fleet.compose.values import SOURCE_LABEL, source_label, take_sources

__all__ = ["create_spec", "scale_spec", "update_spec"]

Spec = dict[str, Any]

_UPDATE_DEFAULTS: Final = {
    "Parallelism": 1,
    "FailureAction": "pause",
    "Monitor": 5_000_000_000,
    "MaxFailureRatio": 0,
    "Order": "stop-first",
}
_TOLERATION: Final = "fleet.placement.toleration"
_CONTAINER: Final = "TaskTemplate.ContainerSpec"


def _place(spec: Spec, path: str) -> tuple[Spec, str]:
    """The object that holds ``path``'s last key, made if needed."""
    *parents, last = path.split(".")
    for key in parents:
        if spec.get(key) is None:
            spec[key] = {}
        spec = spec[key]
    return spec, last


def _put(spec: Spec, path: str, value: object) -> None:
    holder, key = _place(spec, path)
    holder[key] = value


def _peek(spec: Spec, path: str) -> Any:
    found: Any = spec
    for key in path.split("."):
        found = (found or {}).get(key)
    return found


def create_spec(flags: Mapping[str, Any], *, image: str, arguments: Sequence[str]) -> Spec:
    """A new spec, spelled as ``docker service create`` spells it. Raises ``UserError`` for flags that exclude each other."""
    container: Spec = {"Image": image}
    if arguments:
        container["Args"] = list(arguments)
    container |= {"Init": False, "DNSConfig": {}}
    spec: Spec = {
        "Name": flags["name"],
        "Labels": {},
        "TaskTemplate": {
            "ContainerSpec": container,
            "Resources": {"Limits": {}, "Reservations": {}},
            "Placement": {},
            "ForceUpdate": 0,
        },
        "Mode": _mode(flags),
        "EndpointSpec": {"Mode": "vip"},
    }
    for entry in MAP_FLAGS:
        if flags[entry.parameter]:
            _put(spec, entry.path, dict(flags[entry.parameter]))
    for item in LIST_FLAGS:
        given = _flatten(flags[item.parameter], item)
        if given:
            _put(spec, item.path, list({item.name_of(value): value for value in given}.values()))
    _take_sources(spec)
    _tolerate(spec, add=flags["toleration"], remove=())
    _apply_values(spec, flags)
    return spec


def _take_sources(spec: Spec) -> None:
    """``--publish ...,source=client`` is a label of the service, which goes with its last port."""
    ports = _peek(spec, "EndpointSpec.Ports") or []
    before = [name for name in spec.get("Labels") or {} if name.startswith(f"{SOURCE_LABEL}.")]
    _update_map(spec, "Labels", add=list(take_sources(ports).items()), remove=())
    published = {source_label(port["TargetPort"], port.get("Protocol", "tcp")) for port in ports}
    told = published | {name.partition("/")[0] for name in published}
    _update_map(spec, "Labels", add=(), remove=[name for name in before if name not in told])


def _tolerate(spec: Spec, *, add: Sequence[str], remove: Sequence[str]) -> None:
    """Entries of one label; what is removed is named by its key, or as it was written."""
    if not add and not remove:
        return
    before = [item.strip() for item in ((spec.get("Labels") or {}).get(_TOLERATION) or "").split(",")]
    for text in remove:
        if not any(_is_toleration(item, text) for item in before):
            raise errors.UserError(f"--toleration-rm {text}: the service does not tolerate that")
    kept = [item for item in before if item and not any(_is_toleration(item, text) for text in remove)]
    text = ",".join(dict.fromkeys([*kept, *add]))
    _update_map(spec, "Labels", add=[(_TOLERATION, text)] if text else [], remove=[_TOLERATION])


def _is_toleration(item: str, text: str) -> bool:
    return text in (item, item.partition(":")[0].partition("=")[0])


def _mode(flags: Mapping[str, Any]) -> Spec:
    mode, replicas, concurrent = flags["mode"], flags["replicas"], flags["max_concurrent"]
    if replicas is not None and mode in ("global", "global-job"):
        raise errors.UserError(f"--replicas has no meaning in {mode} mode; expected mode replicated or replicated-job")
    if concurrent is not None and mode != "replicated-job":
        raise errors.UserError("--max-concurrent is for replicated-job mode alone")
    match mode:
        case "global":
            return {"Global": {}}
        case "global-job":
            return {"GlobalJob": {}}
        case "replicated-job":
            total = 1 if replicas is None else replicas
            return {
                "ReplicatedJob": {
                    "MaxConcurrent": total if concurrent is None else concurrent,
                    "TotalCompletions": total,
                }
            }
        case _:
            return {"Replicated": {"Replicas": 1 if replicas is None else replicas}}


def _flatten(given: Sequence[Any], item: ListFlag) -> list[Any]:
    return [entry for entries in given for entry in entries] if item.expands else list(given)


def update_spec(current: Spec, flags: Mapping[str, Any]) -> Spec:
    """``current`` with the flags applied; ``current`` itself is not changed."""
    spec = copy.deepcopy(current)
    for entry in MAP_FLAGS:
        _update_map(spec, entry.path, add=flags[f"{entry.parameter}_add"], remove=flags[f"{entry.parameter}_rm"])
    for item in LIST_FLAGS:
        _update_list(spec, item, add=flags[f"{item.parameter}_add"], remove=flags[f"{item.parameter}_rm"])
    if flags["publish_add"] or flags["publish_rm"]:
        _take_sources(spec)
    _tolerate(spec, add=flags["toleration_add"], remove=flags["toleration_rm"])
    if flags["image"]:
        _put(spec, f"{_CONTAINER}.Image", flags["image"])
    if flags["args"] is not None:
        _put(spec, f"{_CONTAINER}.Args", flags["args"])
    if flags["force"]:
        template = spec["TaskTemplate"]
        template["ForceUpdate"] = (template.get("ForceUpdate") or 0) + 1
    if flags["replicas"] is not None:
        spec = scale_spec(spec, flags["replicas"])
    if flags["max_concurrent"] is not None:
        if not _peek(spec, "Mode.ReplicatedJob"):
            raise errors.UserError("--max-concurrent is for services in replicated-job mode alone")
        _put(spec, "Mode.ReplicatedJob.MaxConcurrent", flags["max_concurrent"])
    if flags["no_autoscale"]:
        _end_autoscale(spec, flags)
    _apply_values(spec, flags)
    return spec


def _end_autoscale(spec: Spec, flags: Mapping[str, Any]) -> None:
    for label in LABEL_FLAGS:
        if label.label.startswith(AUTOSCALE_PREFIX) and flags[label.parameter] is not None:
            raise errors.UserError(f"--no-autoscale cannot be combined with --{label.name}")
    _update_map(
        spec, "Labels", add=(), remove=[key for key in spec.get("Labels") or () if key.startswith(AUTOSCALE_PREFIX)]
    )


def scale_spec(current: Spec, replicas: int) -> Spec:
    """``current`` with another number of tasks. Raises ``UserError`` for a service in a mode that has no such number."""
    spec = copy.deepcopy(current)
    mode = spec.get("Mode") or {}
    if mode.get("Replicated") is not None:
        mode["Replicated"]["Replicas"] = replicas
    elif mode.get("ReplicatedJob") is not None:
        mode["ReplicatedJob"]["TotalCompletions"] = replicas
    elif not mode:
        spec["Mode"] = {"Replicated": {"Replicas": replicas}}
    else:
        raise errors.UserError(f"service {spec.get('Name')} is in {mode_name(spec)} mode and cannot be scaled")
    return spec


def _update_map(spec: Spec, path: str, *, add: Sequence[tuple[str, str]], remove: Sequence[str]) -> None:
    if not add and not remove:
        return
    entries = dict(_peek(spec, path) or {})
    for name in remove:
        entries.pop(name, None)
    entries.update(add)
    _put(spec, path, entries)


def _update_list(spec: Spec, item: ListFlag, *, add: Sequence[Any], remove: Sequence[str]) -> None:
    if not add and not remove:
        return
    entries = {item.name_of(entry): entry for entry in _peek(spec, item.path) or ()}
    for text in remove:
        for name in [name for name, entry in entries.items() if _is_meant(item, name, entry, text)]:
            del entries[name]
    for entry in _flatten(add, item):
        entries.pop(item.name_of(entry), None)
        entries[item.name_of(entry)] = entry
    _put(spec, item.path, list(entries.values()))


def _is_meant(item: ListFlag, name: str, entry: Any, text: str) -> bool:
    """Whether ``--x-rm TEXT`` means this entry: ports go by target port, hosts by either half, constraints ignore blanks."""
    match item.name:
        case "publish":
            port, _, protocol = text.rpartition(":")[2].partition("/")
            published = text.rpartition(":")[0]
            return (
                str(entry.get("TargetPort")) == port
                and entry.get("Protocol", "tcp") == (protocol or "tcp")
                and published in ("", str(entry.get("PublishedPort", "")))
            )
        case "host":
            address, _, host = str(entry).partition(" ")
            wanted_host, _, wanted_address = text.partition(":")
            return wanted_host in (host, address) and wanted_address in ("", address)
        case "constraint":
            return name == "".join(text.split())
        case "generic-resource":
            return name == text.partition("=")[0]
        case _:
            return name == text


def _apply_values(spec: Spec, flags: Mapping[str, Any]) -> None:
    for flag in VALUE_FLAGS:
        value = flags[flag.parameter]
        if value is None:
            continue
        section = flag.path.partition(".")[0]
        if section in ("UpdateConfig", "RollbackConfig") and not spec.get(section):
            spec[section] = dict(_UPDATE_DEFAULTS)
        _put(spec, flag.path, value)
    for label in LABEL_FLAGS:
        if (text := flags[label.parameter]) is not None:
            _update_map(spec, label.path, add=[(label.label, text)] if text else [], remove=[label.label])
    if flags["init"] is not None:
        _put(spec, f"{_CONTAINER}.Init", flags["init"])
    if flags["log_opt"]:
        _put(
            spec,
            "TaskTemplate.LogDriver.Options",
            {**(_peek(spec, "TaskTemplate.LogDriver.Options") or {}), **dict(flags["log_opt"])},
        )
    _apply_health(spec, flags)
    _apply_capabilities(spec, flags)


def _apply_health(spec: Spec, flags: Mapping[str, Any]) -> None:
    names = ("interval", "timeout", "retries", "start_period", "start_interval")
    if flags["no_healthcheck"]:
        if flags["health_cmd"] or any(flags[f"health_{name}"] is not None for name in names):
            raise errors.UserError("--no-healthcheck cannot be combined with --health-* flags")
        _put(spec, f"{_CONTAINER}.Healthcheck", {"Test": ["NONE"]})
    elif flags["health_cmd"] is not None:
        test = ["CMD-SHELL", flags["health_cmd"]] if flags["health_cmd"] else []
        _put(spec, f"{_CONTAINER}.Healthcheck.Test", test)


def _apply_capabilities(spec: Spec, flags: Mapping[str, Any]) -> None:
    """As Docker: adding what was dropped takes it off that list and no more, and the other way round."""
    add = flags["cap_add"]
    drop = [name for name in flags["cap_drop"] if name not in add]
    if not add and not drop:
        return
    added = list(_peek(spec, f"{_CONTAINER}.CapabilityAdd") or ())
    dropped = list(_peek(spec, f"{_CONTAINER}.CapabilityDrop") or ())
    for names, mine, other in ((add, added, dropped), (drop, dropped, added)):
        for name in names:
            if name in other:
                other.remove(name)
            elif name not in mine:
                mine.append(name)
    container = spec["TaskTemplate"]["ContainerSpec"]
    for key, names in (("CapabilityAdd", added), ("CapabilityDrop", dropped)):
        if names:
            container[key] = sorted(names)
        else:
            container.pop(key, None)
