"""Values as people spell them, in flags and Compose files alike: durations, sizes, CPUs, ports, mounts, files, limits.

Every ``parse_*`` takes text and returns what the engine API wants (nanoseconds, bytes, objects with Docker's field
names), or raises ``UserError`` with the value and what is accepted; the caller adds the flag or the place in the file.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from fleet import errors

__all__ = [
    "SOURCE_LABEL",
    "parse_bool",
    "parse_bytes",
    "parse_capability",
    "parse_duration_ns",
    "parse_file_reference",
    "parse_host",
    "parse_mount",
    "parse_nano_cpus",
    "parse_network",
    "parse_pair",
    "parse_ports",
    "parse_preference",
    "parse_ulimit",
    "parse_userns_mode",
    "source_label",
    "split_fields",
    "take_sources",
]

JsonObject = dict[str, Any]

_DURATION: Final = re.compile(r"(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|ms|s|m|h)")
_DURATION_UNITS: Final = {
    "ns": 1, "us": 1_000, "µs": 1_000, "ms": 1_000_000, "s": 1_000_000_000,
    "m": 60_000_000_000, "h": 3_600_000_000_000,
}  # fmt: skip
_INT64_MAX: Final = 2**63 - 1

_BYTES: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgtp])i?b?|b)?", re.IGNORECASE)
_BYTE_UNITS: Final = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}

_PORTS_MAX: Final = 1000
"""Ports one range may stand for; each becomes an entry of its own in the spec."""


def parse_duration_ns(text: str) -> int:
    """Go's durations: ``10s``, ``1h30m``, ``1.5s``, ``100ms``; ``0`` alone is fine. Returns nanoseconds."""
    stripped = text.strip()
    if stripped == "0":
        return 0
    parts = _DURATION.findall(stripped)
    if not parts or "".join(parts) != stripped:
        raise errors.UserError(f"{text!r} is not a duration; expected for example 10s, 1m30s or 500ms")
    total = 0
    for part in parts:
        number = part.rstrip("nuµmsh")
        total += int(Decimal(number) * _DURATION_UNITS[part[len(number) :]])
    if total > _INT64_MAX:
        raise errors.UserError(f"{text!r} is longer than the 292 years a duration can say")
    return total


def parse_bytes(text: str) -> int:
    """Sizes as Docker reads them, powers of 1024: ``512m``, ``1.5g``, ``64MiB``, ``1024``. Returns bytes."""
    found = _BYTES.fullmatch(text.strip())
    if found is None:
        raise errors.UserError(f"{text!r} is not a size; expected a number with b, k, m, g or t, for example 512m")
    size = int(Decimal(found[1]) * (1 << _BYTE_UNITS[(found[2] or "").lower()]))
    if size > _INT64_MAX:
        raise errors.UserError(f"{text!r} is larger than 8 EiB")
    return size


def parse_nano_cpus(text: str) -> int:
    """``1.5`` CPUs -> 1_500_000_000."""
    try:
        number = Decimal(text.strip())
        nano = number * 1_000_000_000
        if not number.is_finite() or number < 0 or nano != nano.to_integral_value() or nano > _INT64_MAX:
            raise InvalidOperation
    except InvalidOperation as cause:
        raise errors.UserError(
            f"{text!r} is not a number of CPUs; expected for example 0.5 or 2 (at most 9 decimals)"
        ) from cause
    return int(nano)


def parse_bool(text: str) -> bool:
    """Go's and YAML 1.1's spellings of true and false."""
    lowered = text.strip().lower()
    if lowered in ("1", "t", "true", "yes", "y", "on"):
        return True
    if lowered in ("0", "f", "false", "no", "n", "off"):
        return False
    raise errors.UserError(f"{text!r} is not a boolean; expected true or false")


def parse_pair(text: str, *, what: str) -> tuple[str, str]:
    """``key=value``; a key alone has the empty value, as for labels."""
    key, _, value = text.partition("=")
    if not key.strip():
        raise errors.UserError(f"{text!r} has no name before '='; expected {what}")
    return key, value


def split_fields(text: str) -> list[tuple[str, str | None]]:
    """``a=1,b,"c=x,y"`` -> pairs; a field without ``=`` has the value None. Keys are lower case."""
    try:
        rows = list(csv.reader([text], strict=True))
    except csv.Error as cause:
        raise errors.UserError(f"{text!r} is not a list of key=value fields: {cause}") from cause
    fields: list[tuple[str, str | None]] = []
    for field in rows[0] if rows else []:
        key, separator, value = field.partition("=")
        fields.append((key.strip().lower(), value if separator else None))
    return fields


# --- ports ------------------------------------------------------------------------------------------------------------

_PROTOCOLS: Final = ("tcp", "udp", "sctp")
SOURCE_LABEL: Final = "fleet.publish.source"
"""As ``model.publishing`` reads it, which takes too long to import for what every command does."""
_ACCEPTED: Final = {"protocol": "tcp, udp or sctp", "mode": "ingress or host", "source": "client or node"}


def parse_ports(text: str) -> list[JsonObject]:
    """Short ``8080:80/tcp``, ``8000-8002:80-82``, ``80``, or long ``published=8080,target=80,protocol=tcp,mode=host``.

    A published port of 0 (left out) is chosen by the cluster. Source: ``docker service create --publish``. fleet's own field
    ``source=client`` (or ``node``) comes back as ``Source``, which is for ``take_sources`` to make a label of.
    """
    return _long_port(text) if "=" in text else _short_ports(text)


def _port_range(text: str, *, whole: str) -> range:
    first, separator, last = text.partition("-")
    if not first.isdecimal() or (separator and not last.isdecimal()):
        raise errors.UserError(f"{whole!r}: {text!r} is not a port; expected a number from 1 to 65535")
    ports = range(int(first), int(last or first) + 1)
    if not ports or ports[0] < 1 or ports[-1] > 65535:
        raise errors.UserError(f"{whole!r}: {text!r} is not a port; expected a number from 1 to 65535")
    if len(ports) > _PORTS_MAX:
        raise errors.UserError(f"{whole!r}: a range of {len(ports)} ports; at most {_PORTS_MAX}")
    return ports


def _short_ports(text: str) -> list[JsonObject]:
    ports, _, protocol = text.partition("/")
    protocol = (protocol or "tcp").lower()
    if protocol not in _PROTOCOLS:
        raise errors.UserError(f"{text!r}: unknown protocol {protocol!r}; expected tcp, udp or sctp")
    published, separator, target = ports.rpartition(":")
    if ":" in published or "." in published:
        raise errors.UserError(f"{text!r}: a service is published on every node, so no host address can be given")
    targets = _port_range(target, whole=text)
    sources: Iterable[int] = [0] * len(targets)
    if separator:
        wanted = _port_range(published, whole=text)
        if len(wanted) != len(targets):
            raise errors.UserError(f"{text!r}: the ranges have different lengths ({len(wanted)} and {len(targets)})")
        sources = wanted
    return [
        _port(protocol=protocol, target=target_port, published=source, mode="ingress")
        for source, target_port in zip(sources, targets, strict=True)
    ]


def _long_port(text: str) -> list[JsonObject]:
    protocol, target, published, mode, source = "tcp", 0, 0, "ingress", ""
    for key, value in split_fields(text):
        match key, (value or "").lower():
            case "protocol", ("tcp" | "udp" | "sctp") as given:
                protocol = given
            case "mode", ("ingress" | "host") as given:
                mode = given
            case "source", ("client" | "node") as given:
                source = given
            case "target", given:
                target = _port_range(given, whole=text)[0]
            case "published", given:
                published = _port_range(given, whole=text)[0]
            case (("protocol" | "mode" | "source"), given):
                accepted = _ACCEPTED[key]
                raise errors.UserError(f"{text!r}: unknown {key} {given!r}; expected {accepted}")
            case _:
                raise errors.UserError(
                    f"{text!r}: unknown field {key!r}; known: target, published, protocol, mode, source"
                )
    if not target:
        raise errors.UserError(f"{text!r}: the field 'target' (the port in the container) is missing")
    port = _port(protocol=protocol, target=target, published=published, mode=mode)
    return [port | {"Source": source} if source else port]


def source_label(target_port: int, protocol: str) -> str:
    """The label that says whose address is seen at one port of the containers."""
    return f"{SOURCE_LABEL}.{target_port}/{protocol}"


def take_sources(ports: Iterable[JsonObject]) -> dict[str, str]:
    """Take fleet's own field out of ports; returns the labels of the service that say the same."""
    sources = [(port, port.pop("Source")) for port in ports if "Source" in port]
    return {source_label(port["TargetPort"], port["Protocol"]): source for port, source in sources}


def _port(*, protocol: str, target: int, published: int, mode: str) -> JsonObject:
    port: JsonObject = {"Protocol": protocol, "TargetPort": target}
    if published:
        port["PublishedPort"] = published
    port["PublishMode"] = mode
    return port


# --- mounts -----------------------------------------------------------------------------------------------------------


def _put(path: str, convert: Callable[[str], object]) -> Callable[[JsonObject, str], None]:
    keys = path.split(".")

    def put(mount: JsonObject, value: str) -> None:
        place = mount
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        place[keys[-1]] = convert(value)

    return put


def _put_pair(path: str) -> Callable[[JsonObject, str], None]:
    keys = path.split(".")

    def put(mount: JsonObject, value: str) -> None:
        place = mount
        for key in keys:
            place = place.setdefault(key, {})
        name, text = parse_pair(value, what="name=value")
        place[name] = text

    return put


def _octal(text: str) -> int:
    try:
        return int(text, 8)
    except ValueError as cause:
        raise errors.UserError(f"{text!r} is not a file mode; expected octal digits such as 0444") from cause


def _not(text: str) -> bool:
    return not parse_bool(text)


_MOUNT_TYPES: Final = ("volume", "bind", "tmpfs")
_TARGET: Final = _put("Target", str)
_SOURCE: Final = _put("Source", str)
_READ_ONLY: Final = _put("ReadOnly", parse_bool)
_MOUNT_FIELDS: Final[Mapping[str, Callable[[JsonObject, str], None]]] = {
    "type": _put("Type", str.lower),
    "source": _SOURCE, "src": _SOURCE,
    "target": _TARGET, "dst": _TARGET, "destination": _TARGET,
    "readonly": _READ_ONLY, "ro": _READ_ONLY,
    "consistency": _put("Consistency", str),
    "bind-propagation": _put("BindOptions.Propagation", str.lower),
    "bind-nonrecursive": _put("BindOptions.NonRecursive", parse_bool),
    "bind-create-src": _put("BindOptions.CreateMountpoint", parse_bool),
    "volume-nocopy": _put("VolumeOptions.NoCopy", parse_bool),
    "volume-subpath": _put("VolumeOptions.Subpath", str),
    "volume-driver": _put("VolumeOptions.DriverConfig.Name", str),
    "volume-label": _put_pair("VolumeOptions.Labels"),
    "volume-opt": _put_pair("VolumeOptions.DriverConfig.Options"),
    "tmpfs-size": _put("TmpfsOptions.SizeBytes", parse_bytes),
    "tmpfs-mode": _put("TmpfsOptions.Mode", _octal),
}  # fmt: skip
_FLAG_FIELDS: Final = frozenset({"readonly", "ro", "bind-nonrecursive", "volume-nocopy", "bind-create-src"})
_OPTION_OWNERS: Final = {"bind": "BindOptions", "volume": "VolumeOptions", "tmpfs": "TmpfsOptions"}


def parse_mount(text: str) -> JsonObject:
    """``type=bind|volume|tmpfs,source=...,target=...,readonly``. Source: ``docker service create --mount``."""
    mount: JsonObject = {"Type": "volume"}
    for key, value in split_fields(text):
        put = _MOUNT_FIELDS.get(key)
        if put is None:
            raise errors.UserError(f"{text!r}: unknown field {key!r}; known: {', '.join(_MOUNT_FIELDS)}")
        if value is None and key not in _FLAG_FIELDS:
            raise errors.UserError(f"{text!r}: the field {key!r} needs a value")
        put(mount, "true" if value is None else value)
    return check_mount(mount, text)


def check_mount(mount: JsonObject, text: str) -> JsonObject:
    """``mount`` itself, if its parts fit together; else ``UserError`` naming ``text``."""
    kind = mount["Type"]
    if kind not in _MOUNT_TYPES:
        raise errors.UserError(f"{text!r}: unknown mount type {kind!r}; expected {', '.join(_MOUNT_TYPES)}")
    target = mount.get("Target", "")
    if not target:
        raise errors.UserError(f"{text!r}: the field 'target' (the path in the container) is missing")
    if not target.startswith("/"):
        raise errors.UserError(f"{text!r}: target {target!r} must be an absolute path")
    source = mount.get("Source", "")
    if kind == "bind" and not source.startswith("/"):
        raise errors.UserError(f"{text!r}: a bind mount needs a source that is an absolute path on the node")
    if kind == "tmpfs" and source:
        raise errors.UserError(f"{text!r}: a tmpfs mount has no source")
    for owner, options in _OPTION_OWNERS.items():
        if options in mount and owner != kind:
            raise errors.UserError(f"{text!r}: {owner}-* fields are for mounts of type {owner}, not {kind}")
    return mount


# --- references and the rest ------------------------------------------------------------------------------------------


def parse_file_reference(text: str, *, default_directory: str = "") -> JsonObject:
    """``NAME`` or ``source=NAME,target=FILE,uid=0,gid=0,mode=0444`` -> ``{"Source", "File": {...}}``."""
    if "=" not in text and "," not in text:
        return {"Source": text, "File": file_target(text)}
    source, fields = "", {"target": "", "uid": "0", "gid": "0", "mode": "0444"}
    for key, value in split_fields(text):
        if key in ("source", "src"):
            source = value or ""
        elif key in fields:
            fields[key] = value or ""
        else:
            raise errors.UserError(f"{text!r}: unknown field {key!r}; known: source, target, uid, gid, mode")
    if not source:
        raise errors.UserError(f"{text!r}: the field 'source' (the name) is missing")
    return {
        "Source": source,
        "File": file_target(
            fields["target"] or source, uid=fields["uid"], gid=fields["gid"], mode=_octal(fields["mode"])
        ),
    }


def file_target(name: str, *, uid: str = "0", gid: str = "0", mode: int = 0o444) -> JsonObject:
    """Where a secret or config appears in the container."""
    return {"Name": name, "UID": uid, "GID": gid, "Mode": mode}


def parse_network(text: str) -> JsonObject:
    """``NET`` or ``name=NET,alias=A,driver-opt=K=V`` -> ``{"Target", "Aliases", "DriverOpts"}``."""
    if "=" not in text:
        return {"Target": text}
    network: JsonObject = {"Target": ""}
    for key, value in split_fields(text):
        match key:
            case "name":
                network["Target"] = value or ""
            case "alias":
                network.setdefault("Aliases", []).append(value or "")
            case "driver-opt":
                name, option = parse_pair(value or "", what="driver-opt=name=value")
                network.setdefault("DriverOpts", {})[name] = option
            case _:
                raise errors.UserError(f"{text!r}: unknown field {key!r}; known: name, alias, driver-opt")
    if not network["Target"]:
        raise errors.UserError(f"{text!r}: the field 'name' is missing")
    return network


def parse_preference(text: str) -> JsonObject:
    """``spread=node.labels.zone``."""
    strategy, _, descriptor = text.partition("=")
    if strategy.strip().lower() != "spread" or not descriptor.strip():
        raise errors.UserError(f"{text!r} is not a placement preference; expected spread=node.labels.NAME")
    return {"Spread": {"SpreadDescriptor": descriptor.strip()}}


def parse_ulimit(text: str) -> JsonObject:
    """``nofile=1024:2048``; one number is both limits; -1 is unlimited."""
    name, _, limits = text.partition("=")
    soft, _, hard = limits.partition(":")
    try:
        values = int(soft), int(hard or soft)
    except ValueError as cause:
        raise errors.UserError(f"{text!r} is not a limit; expected for example nofile=1024:2048") from cause
    if not name or values[0] < -1 or values[1] < -1 or (values[1] != -1 and not -1 < values[0] <= values[1]):
        raise errors.UserError(f"{text!r}: the soft limit must not exceed the hard one")
    return {"Name": name, "Soft": values[0], "Hard": values[1]}


def parse_userns_mode(text: str) -> str:
    """``host``, ``remap`` (a user namespace for certain) or nothing."""
    if text not in ("", "host", "remap"):
        raise errors.UserError(f"{text!r} is not a user namespace mode; expected host, or remap")
    return text


def parse_capability(text: str) -> str:
    """``net_admin`` -> ``CAP_NET_ADMIN``; ``ALL`` stays."""
    name = text.strip().upper()
    if not re.fullmatch(r"[A-Z][A-Z_]*", name):
        raise errors.UserError(f"{text!r} is not a capability; expected for example NET_ADMIN or ALL")
    return name if name == "ALL" or name.startswith("CAP_") else f"CAP_{name}"


def parse_host(text: str) -> str:
    """``name:address`` -> ``address name``, a line of /etc/hosts."""
    name, separator, address = text.partition(":")
    if not separator or not name or not address:
        name, separator, address = text.partition("=")
    if not name or not address:
        raise errors.UserError(f"{text!r} is not a host entry; expected NAME:ADDRESS")
    return f"{address} {name}"
