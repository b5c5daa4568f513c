"""Flags -> the body of ``POST /containers/create``, spelled as Docker's client 28 spells it. Reads only named files."""

from __future__ import annotations

import csv
import ipaddress
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from fleet import errors
from fleet.cli.app import read_input
from fleet.compose import values

__all__ = ["create_body"]

Json = dict[str, Any]
Flags = Mapping[str, Any]

_FILE_MAX: Final = 4 * 1024 * 1024
_PORTS_MAX: Final = 65536
_SHARED: Final = ("bridge", "host", "none", "default")
_STREAMS: Final = ("stdin", "stdout", "stderr")


def create_body(
    flags: Flags, *, image: str, command: Sequence[str], environment: Mapping[str, str], detach: bool = False
) -> Json:
    """The whole body. Raises ``UserError`` with Docker's sentence for flags that are wrong or exclude each other."""
    attach = _attach(flags, detach=detach)
    exposed, bindings = _ports(flags)
    volumes, binds = _volumes(flags["volume"])
    body: Json = {
        "Hostname": flags["hostname"] or "",
        "Domainname": flags["domainname"] or "",
        "User": flags["user"] or "",
        "AttachStdin": "stdin" in attach,
        "AttachStdout": "stdout" in attach,
        "AttachStderr": "stderr" in attach,
        "Tty": flags["tty"],
        "OpenStdin": flags["interactive"],
        "StdinOnce": flags["interactive"] and "stdin" in attach,
        "Env": _environment(flags, environment),
        "Cmd": list(command) or None,
        "Image": image,
        "Volumes": volumes,
        "WorkingDir": flags["workdir"] or "",
        "Entrypoint": None if flags["entrypoint"] is None else [flags["entrypoint"]],
        "Labels": _labels(flags),
    }
    if exposed:
        body["ExposedPorts"] = {key: {} for key in sorted(exposed)}
    if flags["stop_signal"] is not None:
        body["StopSignal"] = flags["stop_signal"]
    if flags["stop_timeout"] is not None:
        body["StopTimeout"] = flags["stop_timeout"]
    health = _health(flags)
    if health:
        body["Healthcheck"] = health
    host = _host(flags)
    host |= {"Binds": binds or None, "PortBindings": bindings}
    mode, endpoints = _networks(flags)
    host["NetworkMode"] = mode
    body["HostConfig"] = host
    body["NetworkingConfig"] = {"EndpointsConfig": endpoints}
    return body


def _attach(flags: Flags, *, detach: bool) -> set[str]:
    given = {text.lower() for text in flags["attach"]}
    if not given <= set(_STREAMS):
        raise errors.UserError("--attach: valid streams are STDIN, STDOUT and STDERR")
    if detach:
        if given:
            raise errors.UserError("conflicting options: cannot specify both --attach and --detach")
        return set()
    if given:
        return given
    return {"stdin", "stdout", "stderr"} if flags["interactive"] else {"stdout", "stderr"}


def _lines(path: str) -> list[str]:
    try:
        text = read_input(path, size_max=_FILE_MAX).decode()
    except UnicodeDecodeError as cause:
        raise errors.UserError(f"{path} is not text: {cause}") from cause
    return [
        line.lstrip() for line in text.removeprefix("\ufeff").splitlines() if line.strip() and line.lstrip()[0] != "#"
    ]


def _environment(flags: Flags, environment: Mapping[str, str]) -> list[str] | None:
    found: list[str] = []
    for path in flags["env_file"]:
        for line in _lines(path):
            name, separator, _ = line.partition("=")
            if not name or re.search(r"\s", name.rstrip() if not separator else name):
                raise errors.UserError(f"invalid env file ({path}): variable {name!r} contains whitespaces")
            if separator:
                found.append(line)
            elif name in environment:
                found.append(f"{name}={environment[name]}")
    for text in flags["env"]:
        name, separator, _ = text.partition("=")
        if not name:
            raise errors.UserError(f"--env: invalid environment variable: {text}")
        found.append(text if separator or name not in environment else f"{name}={environment[name]}")
    return found or None


def _pairs(texts: Sequence[str]) -> dict[str, str]:
    return {name: value for name, _, value in (text.partition("=") for text in texts)}


def _labels(flags: Flags) -> dict[str, str]:
    from_files = [line for path in flags["label_file"] for line in _lines(path) if "=" in line]
    return _pairs([*from_files, *flags["label"]])


def _named(flag: str, parse: Any, text: str | None, default: int = 0) -> int:
    if text is None:
        return default
    try:
        return int(parse(text))
    except errors.UserError as cause:
        raise errors.UserError(f"--{flag}: {cause}") from cause


def _health(flags: Flags) -> Json:
    times = (
        ("Interval", "health-interval"), ("Timeout", "health-timeout"),
        ("StartPeriod", "health-start-period"), ("StartInterval", "health-start-interval"),
    )  # fmt: skip
    found: Json = {}
    for key, flag in times:
        text = flags[flag.replace("-", "_")]
        if text is not None and text.startswith("-"):
            raise errors.UserError(f"--{flag} cannot be negative")
        number = _named(flag, values.parse_duration_ns, text)
        if number:
            found[key] = number
    if flags["health_retries"]:
        if flags["health_retries"] < 0:
            raise errors.UserError("--health-retries cannot be negative")
        found["Retries"] = flags["health_retries"]
    if flags["health_cmd"]:
        found["Test"] = ["CMD-SHELL", flags["health_cmd"]]
    if flags["no_healthcheck"]:
        if found:
            raise errors.UserError("--no-healthcheck conflicts with --health-* options")
        return {"Test": ["NONE"]}
    return found


# --- ports and volumes ------------------------------------------------------------------------------------------------


def _range(text: str, *, what: str) -> range:
    first, separator, last = text.partition("-")
    if not first.isdecimal() or (separator and not last.isdecimal()):
        raise errors.UserError(f"invalid {what}: {text}")
    found = range(int(first), int(last or first) + 1)
    if not found or found[-1] >= _PORTS_MAX:
        raise errors.UserError(f"invalid {what}: {text}")
    return found


def _protocol(text: str) -> tuple[str, str]:
    ports, _, protocol = text.partition("/")
    protocol = (protocol or "tcp").lower()
    if protocol not in ("tcp", "udp", "sctp"):
        raise errors.UserError(f"invalid proto: {protocol}")
    return ports, protocol


def _publish(text: str) -> tuple[str, str, str, str]:
    """(address, host ports, container ports, protocol)."""
    if "=" in text:
        fields = {key: value or "" for key, value in values.split_fields(text)}
        if not fields.get("target"):
            raise errors.UserError(f"--publish {text!r}: the field 'target' (the port in the container) is missing")
        return "", fields.get("published", ""), fields["target"], (fields.get("protocol") or "tcp").lower()
    rest, protocol = _protocol(text)
    head, _, target = rest.rpartition(":")
    address, _, host = head.rpartition(":")
    if address:
        try:
            address = str(ipaddress.ip_address(address.strip("[]")))
        except ValueError as cause:
            raise errors.UserError(f"invalid IP address: {address}") from cause
    return address, host, target, protocol


def _ports(flags: Flags) -> tuple[set[str], Json]:
    exposed: set[str] = set()
    bindings: Json = {}
    for text in flags["publish"]:
        address, host, target, protocol = _publish(text)
        targets = _range(target, what="containerPort")
        hosts = _range(host, what="hostPort") if host else None
        if hosts is not None and len(hosts) != len(targets) and len(targets) != 1:
            raise errors.UserError(f"invalid ranges specified for container and host Ports: {target} and {host}")
        for position, port in enumerate(targets):
            key = f"{port}/{protocol}"
            exposed.add(key)
            chosen = "" if hosts is None else host if len(hosts) != len(targets) else str(hosts[position])
            bindings.setdefault(key, []).append({"HostIp": address, "HostPort": chosen})
    for text in flags["expose"]:
        if ":" in text:
            raise errors.UserError(f"invalid port format for --expose: {text}")
        ports, protocol = _protocol(text)
        exposed |= {f"{port}/{protocol}" for port in _range(ports, what="range format for --expose")}
    return exposed, bindings


def _volumes(texts: Sequence[str]) -> tuple[Json, list[str]]:
    anonymous: Json = {}
    binds: list[str] = []
    for text in texts:
        source, separator, rest = text.partition(":")
        if not separator:
            anonymous[text] = {}
        elif source == "." or source.startswith(("./", "../")) or source == "..":
            binds.append(f"{_absolute(source)}:{rest}")
        else:
            binds.append(text)
    return anonymous, binds


def _absolute(path: str) -> str:
    import os.path

    return os.path.abspath(path)  # noqa: PTH100 - links stay as they are, '..' goes; pathlib has no such call


def _mount(text: str) -> Json:
    recursive, kept, image = "", [], {}
    for field in next(csv.reader([text]), []):
        key, _, value = field.partition("=")
        if key == "bind-recursive":
            recursive = value
        elif key == "image-subpath":
            image = {"Subpath": value}
        elif key in ("source", "src") and value.startswith("."):
            kept.append(f"{key}={_absolute(value)}")
        else:
            kept.append(field)
    is_image = "type=image" in kept
    if is_image:
        kept.remove("type=image")
    buffer = ",".join(f'"{field}"' if "," in field else field for field in kept)
    try:
        mount = values.parse_mount(buffer)
    except errors.UserError as cause:
        raise errors.UserError(f"--mount: {cause}") from cause
    if is_image:
        mount["Type"] = "image"
        if image:
            mount["ImageOptions"] = image
    options: Json = {
        "disabled": {"NonRecursive": True},
        "writable": {"ReadOnlyNonRecursive": True},
        "readonly": {"ReadOnlyForceRecursive": True},
    }
    if recursive and recursive != "enabled":
        if recursive not in options:
            raise errors.UserError(
                f"--mount: invalid value for bind-recursive: {recursive}"
                ' (must be "enabled", "disabled", "writable", or "readonly")'
            )
        mount["BindOptions"] = {**mount.get("BindOptions", {}), **options[recursive]}
    return mount


# --- host configuration -----------------------------------------------------------------------------------------------


def _host(flags: Flags) -> Json:
    if flags["memory_swappiness"] is not None and not -1 <= flags["memory_swappiness"] <= 100:
        raise errors.UserError(f"invalid value: {flags['memory_swappiness']}. Valid memory swappiness range is 0-100")
    policy = _restart(flags)
    if flags["rm"] and policy["Name"] not in ("", "no"):
        raise errors.UserError("conflicting options: cannot specify both --restart and --rm")
    options, masked = _security(flags["security_opt"])
    devices, requests = _devices(flags["device"])
    requests = [*_gpus(flags["gpus"]), *requests]
    if flags["log_driver"] == "none" and flags["log_opt"]:
        raise errors.UserError("invalid logging opts for driver none")
    host: Json = {
        "ContainerIDFile": flags["cidfile"] or "",
        "LogConfig": {"Type": flags["log_driver"] or "", "Config": _pairs(flags["log_opt"])},
        "RestartPolicy": policy,
        "AutoRemove": flags["rm"],
        "VolumeDriver": flags["volume_driver"] or "",
        "VolumesFrom": list(flags["volumes_from"]) or None,
        "CapAdd": _capabilities(flags["cap_add"]),
        "CapDrop": _capabilities(flags["cap_drop"]),
        "CgroupnsMode": _mode(flags["cgroupns"], "cgroupns", "CGROUP", ("host", "private")),
        "Dns": [_dns(text) for text in flags["dns"]],
        "DnsOptions": [*flags["dns_option"], *flags["dns_opt"]],
        "DnsSearch": list(flags["dns_search"]),
        "ExtraHosts": [_extra_host(text) for text in flags["add_host"]] or None,
        "GroupAdd": list(flags["group_add"]) or None,
        "IpcMode": flags["ipc"] or "",
        "Links": list(flags["link"]) or None,
        "OomScoreAdj": flags["oom_score_adj"] or 0,
        "PidMode": _mode(flags["pid"], "pid", "PID", ("host",)),
        "Privileged": flags["privileged"],
        "PublishAllPorts": flags["publish_all"],
        "ReadonlyRootfs": flags["read_only"],
        "SecurityOpt": options,
        "UTSMode": _mode(flags["uts"], "uts", "UTS", ("host",)),
        "UsernsMode": _mode(flags["userns"], "userns", "USER", ("host",)),
        "ShmSize": _named("shm-size", values.parse_bytes, flags["shm_size"]),
        "Isolation": flags["isolation"] or "",
        "CgroupParent": flags["cgroup_parent"] or "",
        "Devices": devices,
        "DeviceCgroupRules": [_device_rule(text) for text in flags["device_cgroup_rule"]] or None,
        "DeviceRequests": requests or None,
        **resources(flags),
        "OomKillDisable": flags["oom_kill_disable"],
        "Ulimits": sorted(map(_ulimit, flags["ulimit"]), key=lambda limit: str(limit["Name"])),
    }
    for key, flag, limit in (
        ("BlkioWeightDevice", "blkio_weight_device", False),
        ("BlkioDeviceReadBps", "device_read_bps", True),
        ("BlkioDeviceWriteBps", "device_write_bps", True),
        ("BlkioDeviceReadIOps", "device_read_iops", False),
        ("BlkioDeviceWriteIOps", "device_write_iops", False),
    ):
        host[key] = [_rate(text, flag=flag, size=limit) for text in flags[flag]]
    if flags["init"] is not None:
        host["Init"] = flags["init"]
    if flags["runtime"]:
        host["Runtime"] = flags["runtime"]
    if flags["tmpfs"]:
        host["Tmpfs"] = {path: rest for path, _, rest in (text.partition(":") for text in flags["tmpfs"])}
    if flags["mount"]:
        host["Mounts"] = [_mount(text) for text in flags["mount"]]
    if flags["annotation"]:
        host["Annotations"] = _pairs(flags["annotation"])
    if flags["storage_opt"]:
        if any("=" not in text for text in flags["storage_opt"]):
            raise errors.UserError("invalid storage option")
        host["StorageOpt"] = _pairs(flags["storage_opt"])
    if flags["sysctl"]:
        host["Sysctls"] = dict(map(_sysctl, flags["sysctl"]))
    if masked:
        host |= {"MaskedPaths": [], "ReadonlyPaths": []}
    return host


def resources(flags: Flags) -> Json:
    """The part that ``container update`` may change too."""
    swap = flags["memory_swap"]
    return {
        "CpuShares": flags["cpu_shares"] or 0,
        "Memory": _named("memory", values.parse_bytes, flags["memory"]),
        "NanoCpus": _named("cpus", values.parse_nano_cpus, flags["cpus"]),
        "BlkioWeight": flags["blkio_weight"] or 0,
        "CpuPeriod": flags["cpu_period"] or 0,
        "CpuQuota": flags["cpu_quota"] or 0,
        "CpuRealtimePeriod": flags["cpu_rt_period"] or 0,
        "CpuRealtimeRuntime": flags["cpu_rt_runtime"] or 0,
        "CpusetCpus": flags["cpuset_cpus"] or "",
        "CpusetMems": flags["cpuset_mems"] or "",
        "MemoryReservation": _named("memory-reservation", values.parse_bytes, flags["memory_reservation"]),
        "MemorySwap": -1 if swap == "-1" else _named("memory-swap", values.parse_bytes, swap),
        "MemorySwappiness": -1 if flags.get("memory_swappiness") is None else flags["memory_swappiness"],
        "PidsLimit": flags["pids_limit"] or 0,
    }


def _restart(flags: Flags) -> Json:
    return restart_policy(flags["restart"] or "no")


def restart_policy(text: str) -> Json:
    """``on-failure:3``. Raises ``UserError``."""
    name, separator, count = text.partition(":")
    if separator and not count.lstrip("-").isdecimal():
        raise errors.UserError("invalid restart policy format: maximum retry count must be an integer")
    if separator and not name:
        raise errors.UserError("invalid restart policy format: no policy provided before colon")
    return {"Name": name, "MaximumRetryCount": int(count) if separator else 0}


def _security(texts: Sequence[str]) -> tuple[list[str] | None, bool]:
    """Options with a seccomp file's JSON in place of its name; whether system paths are unconfined."""
    found: list[str] = []
    unmask = False
    for text in texts:
        if text == "systempaths=unconfined":
            unmask = True
            continue
        split = "=" if "=" in text else ":"
        name, separator, value = text.partition(split)
        if not separator and name != "no-new-privileges":
            raise errors.UserError(f'Invalid --security-opt: "{text}"')
        if name == "seccomp" and value not in ("unconfined", "builtin"):
            try:
                profile = json.loads(read_input(value, size_max=_FILE_MAX))
            except errors.UserError as cause:
                raise errors.UserError(f"opening seccomp profile ({value}) failed: {cause}") from cause
            except ValueError as cause:
                raise errors.UserError(f"compacting json for seccomp profile ({value}) failed: {cause}") from cause
            found.append(f"seccomp={json.dumps(profile, separators=(',', ':'), ensure_ascii=False)}")
        else:
            found.append(text)
    return (found if texts else None), unmask


def _capabilities(texts: Sequence[str]) -> list[str] | None:
    return [values.parse_capability(text) for text in texts] or None


def _mode(text: str | None, flag: str, word: str, known: tuple[str, ...]) -> str:
    joined = flag == "pid" and (text or "").startswith("container:") and text != "container:"
    if text and text not in known and not joined:
        raise errors.UserError(f"--{flag}: invalid {word} mode")
    return text or ""


def _dns(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text.strip()))
    except ValueError as cause:
        raise errors.UserError(f"--dns: IP address is not correctly formatted: {text}") from cause


def _extra_host(text: str) -> str:
    name, separator, address = text.partition("=") if "=" in text else text.partition(":")
    if not separator or not name:
        raise errors.UserError(f'--add-host: bad format for add-host: "{text}"')
    if address.startswith("[") and address.endswith("]"):
        address = address[1:-1]
    if address != "host-gateway":
        try:
            ipaddress.ip_address(address)
        except ValueError as cause:
            raise errors.UserError(f'--add-host: invalid IP address in add-host: "{address}"') from cause
    return f"{name}:{address}"


_RULE: Final = re.compile(r"[acb] (\d+|\*):(\d+|\*) [rwm]{1,3}")


def _device_rule(text: str) -> str:
    if not _RULE.fullmatch(text):
        raise errors.UserError(f"--device-cgroup-rule: invalid device cgroup format '{text}'")
    return text


def _permissions(text: str) -> bool:
    return bool(text) and set(text) <= set("rwm") and len(set(text)) == len(text)


def _devices(texts: Sequence[str]) -> tuple[list[Json], list[Json]]:
    devices: list[Json] = []
    named: list[str] = []
    for text in texts:
        if not text.startswith("/") and re.fullmatch(r"[\w.-]+/[\w.-]+=[\w.:-]+", text):
            named.append(text)
            continue
        parts = text.split(":")
        if len(parts) > 3 or not parts[0]:
            raise errors.UserError(f"bad format for path: {text}")
        source, target, permissions = parts[0], parts[0], "rwm"
        if len(parts) == 3:
            target, permissions = parts[1], parts[2]
        elif len(parts) == 2 and _permissions(parts[1]):
            permissions = parts[1]
        elif len(parts) == 2:
            target = parts[1]
        if not target.startswith("/"):
            raise errors.UserError(f"{target} is not an absolute path")
        if not _permissions(permissions):
            raise errors.UserError(f"bad mode specified: {permissions}")
        devices.append({"PathOnHost": source, "PathInContainer": target, "CgroupPermissions": permissions})
    requests = [{"Driver": "cdi", "Count": 0, "DeviceIDs": named, "Capabilities": None, "Options": None}]
    return devices, requests if named else []


def _gpus(texts: Sequence[str]) -> list[Json]:
    found: list[Json] = []
    for text in texts:
        request: Json = {"Driver": "", "Count": 0, "DeviceIDs": None, "Capabilities": [["gpu"]], "Options": {}}
        given: set[str] = set()
        for field in next(csv.reader([text]), []):
            key, separator, value = field.partition("=")
            key, value = (key, value) if separator else ("count", key)
            given.add(key)
            match key:
                case "driver":
                    request["Driver"] = value
                case "count":
                    if value != "all" and not value.lstrip("-").isdecimal():
                        raise errors.UserError(
                            f'--gpus: invalid count ({value}): value must be either "all" or an integer'
                        )
                    request["Count"] = -1 if value == "all" else int(value)
                case "device":
                    request["DeviceIDs"] = value.split(",")
                case "capabilities":
                    names = value.split(",")
                    request["Capabilities"] = [names if "gpu" in names else [*names, "gpu"]]
                case "options":
                    request["Options"] = _pairs(value.split(","))
                case _:
                    raise errors.UserError(f"--gpus: unexpected key '{key}' in '{field}'")
        if not given & {"count", "device"}:
            request["Count"] = 1
        found.append(request)
    return found


def _ulimit(text: str) -> Json:
    try:
        return values.parse_ulimit(text)
    except errors.UserError as cause:
        raise errors.UserError(f"--ulimit: {cause}") from cause


def _sysctl(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    known = {f"kernel.{name}" for name in ("msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni")}
    known.add("kernel.shm_rmid_forced")
    if not separator or not (name in known or name.startswith(("net.", "fs.mqueue."))):
        raise errors.UserError(f"--sysctl: sysctl '{text}' is not allowed")
    return name, value


def _rate(text: str, *, flag: str, size: bool) -> Json:
    path, separator, value = text.rpartition(":")
    if not separator or not path.startswith("/dev/"):
        raise errors.UserError(f"--{flag.replace('_', '-')}: bad format for device path: {text}")
    if not size and not value.isdecimal():
        raise errors.UserError(f"--{flag.replace('_', '-')}: invalid rate for device: {text}")
    number = _named(flag.replace("_", "-"), values.parse_bytes, value) if size else int(value)
    return {"Path": path, "Weight" if flag == "blkio_weight_device" else "Rate": number}


# --- networks ---------------------------------------------------------------------------------------------------------


def parse_network(text: str) -> Json:
    """``NET`` or ``name=NET,alias=A,ip=ADDRESS,...`` -> one attachment in Docker's words."""
    if "=" not in text:
        return {"Target": text}
    found: Json = {"Target": ""}
    addresses: Json = {}
    for key, value in values.split_fields(text):
        given = value or ""
        match key:
            case "name":
                found["Target"] = given
            case "alias":
                found.setdefault("Aliases", []).append(given)
            case "driver-opt":
                name, _, option = given.partition("=")
                found.setdefault("DriverOpts", {})[name.lower()] = option
            case "ip":
                addresses["IPv4Address"] = given
            case "ip6":
                addresses["IPv6Address"] = given
            case "link-local-ip":
                addresses.setdefault("LinkLocalIPs", []).append(given)
            case "mac-address":
                found["MacAddress"] = _mac(given)
            case "gw-priority":
                if not given.lstrip("-").isdecimal():
                    raise errors.UserError(f"--network: invalid gw-priority: {given}")
                found["GwPriority"] = int(given)
            case _:
                raise errors.UserError(f"--network: invalid field key {key}")
    if addresses:
        found["IPAMConfig"] = addresses
    return found


def _mac(text: str) -> str:
    if not re.fullmatch(r"([0-9a-fA-F]{2}[:-]){5}[0-9a-fA-F]{2}", text):
        raise errors.UserError(f"{text} is not a valid mac address")
    return text


def _user_defined(name: str) -> bool:
    return name not in _SHARED and not name.startswith("container:")


def _networks(flags: Flags) -> tuple[str, Json]:
    given = [parse_network(text) for text in flags["network"]] or [{"Target": "default"}]
    first = given[0]
    _flags_into(first, flags)
    endpoints: Json = {}
    for attachment in given:
        name = attachment.pop("Target")
        if not name.strip():
            raise errors.UserError("no name set for network")
        if name in endpoints:
            raise errors.UserError(f'network "{name}" is specified multiple times')
        if len(given) > 1 and not _user_defined(name) and name not in ("bridge", "default"):
            raise errors.UserError(
                "conflicting options: cannot attach both user-defined and non-user-defined network-modes"
            )
        endpoints[name] = attachment
    mode = next(iter(endpoints))
    if mode in ("host", "none") or mode.startswith("container:"):
        endpoints = {name: value for name, value in endpoints.items() if value}
    return mode, endpoints


def _flags_into(first: Json, flags: Flags) -> None:
    """The old flags speak of the first network."""
    aliases = list(flags["network_alias"])
    if aliases and first.get("Aliases"):
        raise errors.UserError("conflicting options: cannot specify both --network-alias and per-network alias")
    if aliases:
        first["Aliases"] = aliases
    if first.get("Aliases") and not _user_defined(first["Target"]):
        raise errors.UserError("network-scoped aliases are only supported for user-defined networks")
    if flags["link"] and _user_defined(first["Target"]):
        first["Links"] = list(flags["link"])
    if flags["mac_address"]:
        first["MacAddress"] = _mac(flags["mac_address"])
    for flag, key, word in (("ip", "IPv4Address", "IPv4"), ("ip6", "IPv6Address", "IPv6")):
        if flags[flag]:
            if key in first.get("IPAMConfig", {}):
                raise errors.UserError(
                    f"conflicting options: cannot specify both --{flag} and per-network {word} address"
                )
            first.setdefault("IPAMConfig", {})[key] = flags[flag]
    if flags["link_local_ip"]:
        first.setdefault("IPAMConfig", {})["LinkLocalIPs"] = list(flags["link_local_ip"])


def write_cidfile(path: str, container_id: str) -> None:
    """All of docker's rule: the file must not be there yet. Raises ``UserError``."""
    try:
        with Path(path).open("x") as file:
            file.write(container_id)
    except FileExistsError as cause:
        raise errors.UserError(
            f"container ID file found, make sure the other container isn't running or delete {path}"
        ) from cause
    except OSError as cause:
        raise errors.UserError(f"failed to create the container ID file: {cause}") from cause
