"""One service of a Compose file -> ``ServiceSpec``. Keys and their meaning: Compose specification, "Services", "Deploy"."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping
from typing import Any, Final

from fleet import errors
from fleet.compose import deploy, values
from fleet.compose.document import Node, hint
from fleet.compose.env_file import parse_env_file
from fleet.compose.reading import listed, string_map, strings, words
from fleet.model import wire
from fleet.model.autoscale import check_autoscale
from fleet.model.common import Driver
from fleet.model.publishing import check_sources
from fleet.model.service import (
    USERNS_LABEL,
    BindOptions,
    ConfigReference,
    ContainerSpec,
    DnsConfig,
    EndpointMode,
    EndpointSpec,
    FileTarget,
    HealthConfig,
    Mount,
    NetworkTarget,
    PortConfig,
    SecretReference,
    ServiceSpec,
    TaskSpec,
    TmpfsOptions,
    Ulimit,
    VolumeOptions,
)

__all__ = ["ServiceConverter"]

_NAMESPACE_LABEL: Final = "com.docker.stack.namespace"
_IMAGE_LABEL: Final = "com.docker.stack.image"
_ENV_FILE_MAX: Final = 1024 * 1024
_PREDEFINED_NETWORKS: Final = frozenset({"host", "none", "bridge"})


class ServiceConverter:
    """Converts one service; ``networks_used`` are the keys of the networks it joins."""

    def __init__(
        self,
        *,
        key: str,
        node: Node,
        stack: str,
        environment: Mapping[str, str],
        directory: str,
        read_file: Callable[[str, int], bytes],
        network_names: Mapping[str, str],
        secret_names: Mapping[str, str],
        config_names: Mapping[str, str],
        volumes: Mapping[str, tuple[str, bool, Node]],
    ) -> None:
        self.key = key
        self.node = node
        self.stack = stack
        self.environment = environment
        self.directory = directory
        self.read_file = read_file
        self.network_names = network_names
        self.secret_names = secret_names
        self.config_names = config_names
        self.volumes = volumes
        self.fields = node.mapping()
        self.networks_used: set[str] = set()

    def spec(self) -> ServiceSpec:
        """The service, with names for networks, secrets and configs."""
        image = self._string("image")
        if not image:
            self.node.fail("a service of a stack needs an image")
        deployment = deploy.convert(self.fields.get("deploy"), fields=self.fields)
        ports, sources = self._ports()
        spec = ServiceSpec(
            name=f"{self.stack}_{self.key}",
            labels={**deployment.labels, **sources, _NAMESPACE_LABEL: self.stack, _IMAGE_LABEL: image},
            task_template=TaskSpec(
                container_spec=self._container(image),
                resources=deployment.resources,
                restart_policy=deployment.restart_policy,
                placement=deployment.placement,
                networks=self._networks(),
                log_driver=self._log_driver(),
            ),
            mode=deployment.mode,
            update_config=deployment.update_config,
            rollback_config=deployment.rollback_config,
            endpoint_spec=EndpointSpec(mode=EndpointMode(deployment.endpoint_mode or "vip"), ports=ports),
        )
        self._check_labels(spec)
        return spec

    def _check_labels(self, spec: ServiceSpec) -> None:
        """Read here already, because a person should know the line before anything of the stack is made."""
        try:
            check_autoscale(spec)
            check_sources(spec.labels)
        except errors.UserError as cause:
            section = self.fields["deploy"].mapping()
            section.get("labels", self.fields["deploy"]).fail(str(cause))

    # Scalars by key.

    def _string(self, key: str) -> str:
        node = self.fields.get(key)
        return "" if node is None or node.kind == "null" else node.string()

    def _boolean(self, key: str) -> bool:
        node = self.fields.get(key)
        return node is not None and node.boolean()

    def _container(self, image: str) -> ContainerSpec:
        fields = self.fields
        grace = fields.get("stop_grace_period")
        return ContainerSpec(
            image=image,
            labels={**string_map(fields.get("labels")), **self._users(), _NAMESPACE_LABEL: self.stack},
            command=words(fields.get("entrypoint")),
            args=words(fields.get("command")),
            hostname=self._string("hostname"),
            env=self._environment(),
            dir=self._string("working_dir"),
            user=self._string("user"),
            groups=strings(fields.get("group_add")),
            tty=self._boolean("tty"),
            open_stdin=self._boolean("stdin_open"),
            read_only=self._boolean("read_only"),
            mounts=self._mounts(),
            stop_signal=self._string("stop_signal"),
            stop_grace_period_ns=grace.apply(values.parse_duration_ns) if grace else None,
            healthcheck=self._healthcheck(),
            hosts=self._hosts(),
            dns_config=self._dns(),
            secrets=tuple(self._secret(node) for node in self._list("secrets")),
            configs=tuple(self._config(node) for node in self._list("configs")),
            oom_score_adj=fields["oom_score_adj"].integer() if "oom_score_adj" in fields else 0,
            init=fields["init"].boolean() if "init" in fields else None,
            sysctls=string_map(fields.get("sysctls")),
            capability_add=self._capabilities("cap_add"),
            capability_drop=tuple(c for c in self._capabilities("cap_drop") if c not in self._capabilities("cap_add")),
            ulimits=self._ulimits(),
        )

    def _users(self) -> dict[str, str]:
        """``userns_mode`` as the container label that agents read; an empty one is the node's choice."""
        node = self.fields.get("userns_mode")
        mode = node.apply(values.parse_userns_mode) if node is not None and node.kind != "null" else ""
        return {USERNS_LABEL: mode} if mode else {}

    def _capabilities(self, key: str) -> tuple[str, ...]:
        """Sorted; one that is added and dropped is added."""
        return tuple(sorted({node.apply(values.parse_capability) for node in listed(self.fields.get(key))}))

    def _list(self, key: str) -> tuple[Node, ...]:
        node = self.fields.get(key)
        return node.sequence() if node else ()

    # Environment.

    def _environment(self) -> tuple[str, ...]:
        variables: dict[str, str | None] = {}
        for node in listed(self.fields.get("env_file")):
            variables.update(self._env_file(node))
        given = self.fields.get("environment")
        if given is not None and given.kind == "list":
            for item in given.items:
                name, separator, value = item.scalar().partition("=")
                if not name:
                    item.fail("a variable has no name before '='")
                variables[name] = value if separator else self.environment.get(name)
        elif given is not None:
            for name, child in given.mapping().items():
                if not name or "=" in name:
                    child.fail("the name of a variable is not empty and has no '='")
                variables[name] = self.environment.get(name) if child.kind == "null" else child.scalar()
        return tuple(f"{name}={value}" for name, value in sorted(variables.items()) if value is not None)

    def _env_file(self, node: Node) -> dict[str, str | None]:
        required = True
        path_node = node
        if node.kind == "mapping":
            required = "required" not in node.entries or node.entries["required"].boolean()
            path_node = node.entries.get("path") or node.fail("the key 'path' is missing")
        path = path_node.string()
        try:
            text = self.read_file(path, _ENV_FILE_MAX).decode()
        except FileNotFoundError as cause:
            if not required:
                return {}
            raise errors.UserError(f"{path_node.mark}: {path_node.path}: there is no file {path}") from cause
        except (OSError, UnicodeDecodeError) as cause:
            raise errors.UserError(f"{path_node.mark}: {path_node.path}: cannot read {path}: {cause}") from cause
        try:
            return parse_env_file(text, environment=self.environment)
        except errors.UserError as cause:
            raise errors.UserError(f"{path_node.mark}: {path_node.path}: {path}{cause}") from cause

    # Networks and ports.

    def _networks(self) -> tuple[NetworkTarget, ...]:
        node = self.fields.get("networks")
        wanted: dict[str, Node | None] = {}
        if node is not None and node.kind == "list":
            wanted = {item.string(): None for item in node.items}
        elif node is not None:
            wanted = dict(node.mapping())
        if not wanted:
            wanted = {"default": None}
        targets = []
        for name, options in wanted.items():
            if name not in self.network_names and name != "default":
                (options or node or self.node).fail(
                    f"the network {name!r} is not defined under the top-level 'networks'; {hint(name, self.network_names)}"
                )
            self.networks_used.add(name)
            fields = options.mapping() if options is not None else {}
            full = self.network_names.get(name, f"{self.stack}_{name}")
            aliases = () if full in _PREDEFINED_NETWORKS else (self.key, *strings(fields.get("aliases")))
            targets.append(
                NetworkTarget(
                    target=full,
                    aliases=tuple(dict.fromkeys(aliases)),
                    driver_opts=string_map(fields.get("driver_opts")),
                )
            )
        return tuple(sorted(targets, key=lambda target: target.target))

    def _ports(self) -> tuple[tuple[PortConfig, ...], dict[str, str]]:
        """With the labels that say what a port says by fleet's own field."""
        ports: list[PortConfig] = []
        sources: dict[str, str] = {}
        for node in self._list("ports"):
            entries = node.apply(values.parse_ports) if node.kind != "mapping" else [_port(node)]
            sources |= values.take_sources(entries)
            ports += [wire.parse_builtins(entry, PortConfig, what="port") for entry in entries]
        return tuple(sorted(ports, key=lambda port: (port.published_port, port.target_port, port.protocol))), sources

    # Mounts.

    def _mounts(self) -> tuple[Mount, ...]:
        mounts = [self._mount(node) for node in self._list("volumes")]
        mounts += [node.apply(_tmpfs) for node in listed(self.fields.get("tmpfs"))]
        return tuple(mounts)

    def _mount(self, node: Node) -> Mount:
        if node.kind != "mapping":
            return self._short_mount(node)
        fields = node.mapping()
        kind = fields["type"].string() if "type" in fields else "volume"
        source = fields["source"].string() if "source" in fields else ""
        given: dict[str, Any] = {"Type": kind, "Target": fields["target"].string() if "target" in fields else ""}
        if kind == "bind":
            source = self._path(source)
        if source:
            given["Source"] = source
        node.apply_check(lambda: values.check_mount(given, f"{kind} mount"))
        read_only = "read_only" in fields and fields["read_only"].boolean()
        consistency = fields["consistency"].string() if "consistency" in fields else ""
        target = given["Target"]
        match kind:
            case "bind":
                bind = fields["bind"].mapping() if "bind" in fields else {}
                options = BindOptions(
                    propagation=bind["propagation"].string() if "propagation" in bind else "",
                    create_mountpoint="create_host_path" in bind and bind["create_host_path"].boolean(),
                )
                return Mount(
                    type="bind",
                    source=source,
                    target=target,
                    read_only=read_only,
                    consistency=consistency,
                    bind_options=options if bind else None,
                )
            case "tmpfs":
                tmpfs = fields["tmpfs"].mapping() if "tmpfs" in fields else {}
                size = tmpfs["size"].apply(values.parse_bytes) if "size" in tmpfs else 0
                mode = tmpfs["mode"].integer() if "mode" in tmpfs else 0
                return Mount(
                    type="tmpfs",
                    target=target,
                    read_only=read_only,
                    tmpfs_options=TmpfsOptions(size_bytes=size, mode=mode) if tmpfs else None,
                )
            case _:
                volume = fields["volume"].mapping() if "volume" in fields else {}
                return self._volume_mount(
                    node,
                    source=source,
                    target=target,
                    read_only=read_only,
                    no_copy="nocopy" in volume and volume["nocopy"].boolean(),
                    subpath=volume["subpath"].string() if "subpath" in volume else "",
                    labels=string_map(volume.get("labels")),
                )

    def _short_mount(self, node: Node) -> Mount:
        parts = node.string().split(":")
        if len(parts) > 3 or not all(parts):
            node.fail(f"{node.text!r} is not a mount; expected [SOURCE:]TARGET[:ro]")
        source, target = (parts[0], parts[1]) if len(parts) > 1 else ("", parts[0])
        if not target.startswith("/"):
            node.fail(f"{node.text!r}: the path in the container must be absolute")
        read_only, no_copy, propagation = False, False, ""
        for option in parts[2].split(",") if len(parts) > 2 else ():
            match option:
                case "ro" | "rw":
                    read_only = option == "ro"
                case "nocopy":
                    no_copy = True
                case "private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave":
                    propagation = option
                case "z" | "Z" | "cached" | "delegated" | "consistent":
                    continue  # SELinux labels and macOS hints: nothing to do on a fleet node
                case _:
                    node.fail(
                        f"{node.text!r}: unknown mount option {option!r}; known: ro, rw, nocopy, propagation modes"
                    )
        if source.startswith(("/", "./", "../", "~")) or source in (".", ".."):
            return Mount(
                type="bind",
                source=self._path(source),
                target=target,
                read_only=read_only,
                bind_options=BindOptions(propagation=propagation) if propagation else None,
            )
        return self._volume_mount(
            node, source=source, target=target, read_only=read_only, no_copy=no_copy, subpath="", labels={}
        )

    def _volume_mount(
        self,
        node: Node,
        *,
        source: str,
        target: str,
        read_only: bool,
        no_copy: bool,
        subpath: str,
        labels: dict[str, str],
    ) -> Mount:
        if not source:
            options = VolumeOptions(no_copy=no_copy, subpath=subpath, labels=labels)
            return Mount(target=target, read_only=read_only, volume_options=options)
        if source not in self.volumes:
            node.fail(
                f"the volume {source!r} is not defined under the top-level 'volumes'; {hint(source, self.volumes)}"
            )
        full, external, definition = self.volumes[source]
        if external:
            options = VolumeOptions(no_copy=no_copy, subpath=subpath, labels=labels)
        else:
            fields = definition.mapping()
            driver = None
            if "driver" in fields or "driver_opts" in fields:
                driver = Driver(
                    name=fields["driver"].string() if "driver" in fields else "",
                    options=string_map(fields.get("driver_opts")),
                )
            labels = {**string_map(fields.get("labels")), **labels, _NAMESPACE_LABEL: self.stack}
            options = VolumeOptions(no_copy=no_copy, subpath=subpath, labels=labels, driver_config=driver)
        return Mount(source=full, target=target, read_only=read_only, volume_options=options)

    def _path(self, source: str) -> str:
        if source.startswith("~"):
            home = self.environment.get("HOME", "")
            source = posixpath.join(home, source[1:].lstrip("/")) if home else source
        return posixpath.normpath(posixpath.join(self.directory, source)) if source else ""

    # Secrets and configs.

    def _reference(self, node: Node, names: Mapping[str, str], what: str) -> tuple[str, FileTarget]:
        fields = {"source": node} if node.kind != "mapping" else node.mapping()
        if "source" not in fields:
            node.fail("the key 'source' is missing")
        source = fields["source"].string()
        if source not in names:
            node.fail(f"the {what} {source!r} is not defined under the top-level '{what}s'; {hint(source, names)}")
        return names[source], FileTarget(
            name=fields["target"].string() if "target" in fields else source,
            uid=fields["uid"].string() if "uid" in fields else "0",
            gid=fields["gid"].string() if "gid" in fields else "0",
            mode=fields["mode"].integer() if "mode" in fields else 0o444,
        )

    def _secret(self, node: Node) -> SecretReference:
        name, target = self._reference(node, self.secret_names, "secret")
        return SecretReference(file=target, secret_name=name)

    def _config(self, node: Node) -> ConfigReference:
        name, target = self._reference(node, self.config_names, "config")
        return ConfigReference(file=target, config_name=name)

    # The rest.

    def _healthcheck(self) -> HealthConfig | None:
        node = self.fields.get("healthcheck")
        if node is None:
            return None
        fields = node.mapping()
        if "disable" in fields and fields["disable"].boolean():
            if len(fields) > 1:
                node.fail("'disable' cannot be combined with other keys")
            return HealthConfig(test=("NONE",))
        test: tuple[str, ...] = ()
        if "test" in fields:
            given = fields["test"]
            test = strings(given) if given.kind == "list" else ("CMD-SHELL", given.string())
            if test and test[0] not in ("NONE", "CMD", "CMD-SHELL"):
                given.fail("a list must begin with NONE, CMD or CMD-SHELL")

        def duration(key: str) -> int:
            return fields[key].apply(values.parse_duration_ns) if key in fields else 0

        return HealthConfig(
            test=test,
            interval_ns=duration("interval"),
            timeout_ns=duration("timeout"),
            retries=fields["retries"].integer() if "retries" in fields else 0,
            start_period_ns=duration("start_period"),
            start_interval_ns=duration("start_interval"),
        )

    def _hosts(self) -> tuple[str, ...]:
        node = self.fields.get("extra_hosts")
        if node is None:
            return ()
        if node.kind == "list":
            return tuple(item.apply(values.parse_host) for item in node.items)
        return tuple(f"{address} {name}" for name, child in node.mapping().items() for address in strings(child))

    def _dns(self) -> DnsConfig | None:
        found = DnsConfig(
            nameservers=strings(self.fields.get("dns")),
            search=strings(self.fields.get("dns_search")),
            options=strings(self.fields.get("dns_opt")),
        )
        return found if found != DnsConfig() else None

    def _ulimits(self) -> tuple[Ulimit, ...]:
        node = self.fields.get("ulimits")
        limits = []
        for name, child in sorted(node.mapping().items()) if node else ():
            if child.kind == "mapping":
                fields = child.mapping()
                if not {"soft", "hard"} <= fields.keys():
                    child.fail("expected a number, or both 'soft' and 'hard'")
                limits.append(Ulimit(name=name, soft=fields["soft"].integer(), hard=fields["hard"].integer()))
            else:
                limits.append(Ulimit(name=name, soft=child.integer(), hard=child.integer()))
        return tuple(limits)

    def _log_driver(self) -> Driver | None:
        node = self.fields.get("logging")
        if node is None:
            return None
        fields = node.mapping()
        return Driver(
            name=fields["driver"].string() if "driver" in fields else "", options=string_map(fields.get("options"))
        )


def _port(node: Node) -> dict[str, Any]:
    fields = node.mapping()
    keys = ("target", "published", "protocol", "mode", "x-source")
    parts = [f"{key.removeprefix('x-')}={fields[key].scalar()}" for key in keys if key in fields]
    (port,) = node.apply_check(lambda: values.parse_ports(",".join(parts) or "target="))
    if "name" in fields:
        port["Name"] = fields["name"].string()
    return port


def _tmpfs(text: str) -> Mount:
    target, _, options = text.partition(":")
    if not target.startswith("/"):
        raise errors.UserError(f"{text!r}: the path in the container must be absolute")
    size, mode, read_only = 0, 0, False
    for key, value in values.split_fields(options):
        match key:
            case "size":
                size = values.parse_bytes(value or "")
            case "mode":
                try:
                    mode = int(value or "", 8)
                except ValueError as cause:
                    raise errors.UserError(f"{text!r}: mode expects octal digits such as 1777") from cause
            case "ro" | "rw":
                read_only = key == "ro"
            case _:
                raise errors.UserError(f"{text!r}: unknown option {key!r}; known: size, mode, ro, rw")
    tmpfs = TmpfsOptions(size_bytes=size, mode=mode) if size or mode else None
    return Mount(type="tmpfs", target=target, read_only=read_only, tmpfs_options=tmpfs)
