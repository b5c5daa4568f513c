"""The daemon's configuration: a TOML file, then flags over it; parsed once into a frozen object.

Names follow dockerd's (``--data-root``, ``--exec-root``, ``--host`` ...), so that what one knows fits. ``/etc/fleet/fleetd.toml``
is read when it exists; ``--config FILE`` names another, which must. Without root the folders are the user's own, where the XDG
base directory specification puts them, and the file is ``~/.config/fleet/fleetd.toml``.
"""

from __future__ import annotations

import argparse
import os
import socket
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fleet import __version__, errors
from fleet.daemon.addresses import split_address
from fleet.daemon.dashboard.pages import DashboardMode
from fleet.daemon.rates import Rate, parse_rate
from fleet.images.registry import RegistryOptions, parse_mirrors
from fleet.traces import check_endpoint

__all__ = ["DEFAULT_CONFIG", "DEFAULT_SOCKET", "DaemonConfig", "load_config"]

DEFAULT_CONFIG: Final = Path("/etc/fleet/fleetd.toml")
METRICS_PORT: Final = 9323
"""dockerd's."""
DEFAULT_SOCKET: Final = "unix:///run/fleet/fleet.sock"


class DaemonConfig(BaseModel):
    """What fleetd was told. Paths are absolute; ``hosts`` are unix:// and tcp:// addresses of the engine API."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data_root: Path = Path("/var/lib/fleet")
    exec_root: Path = Path("/run/fleet")
    hosts: tuple[str, ...] = (DEFAULT_SOCKET,)
    api_rate_client: str = "200:2000"
    api_rate_address: str = "1000:10000"
    metrics_addr: str = ""
    otlp_endpoint: str = ""
    group: str = ""
    tlsverify: bool = False
    tlscacert: Path | None = None
    tlscert: Path | None = None
    tlskey: Path | None = None
    cgroup_parent: str = "/fleet"
    hostname: str = Field(default_factory=socket.gethostname, max_length=253)
    labels: tuple[str, ...] = ()
    insecure_registries: tuple[str, ...] = ()
    registry_mirrors: tuple[str, ...] = ()
    registry_certs: Path = Path("/etc/fleet/certs.d")
    dashboard: DashboardMode = DashboardMode.AUTO
    dashboard_hosts: tuple[str, ...] = ()
    userns_remap: Literal["auto", "off"] = "auto"
    rootless: bool = False
    """As an ordinary user, in a user namespace."""
    rootless_entered: bool = False
    """This process is in it already."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"

    store: str = ""
    store_cacert: Path | None = None
    store_cert: Path | None = None
    store_key: Path | None = None

    @field_validator("store")
    @classmethod
    def _known_store(cls, text: str) -> str:
        if text and not (text.startswith("etcd://") and all(text.removeprefix("etcd://").split(","))):
            raise ValueError(f"{text}: expected etcd://HOST:PORT[,HOST:PORT...]")
        return text

    @field_validator("otlp_endpoint")
    @classmethod
    def _known_otlp_endpoint(cls, text: str) -> str:
        try:
            return check_endpoint(text) if text else ""
        except errors.UserError as cause:
            raise ValueError(str(cause)) from cause

    @field_validator("api_rate_client", "api_rate_address", mode="before")
    @classmethod
    def _known_rate(cls, value: object) -> str:
        text = str(value)  # a file may have a plain number
        try:
            parse_rate(text)
        except errors.UserError as cause:
            raise ValueError(str(cause)) from cause
        return text

    @field_validator("metrics_addr")
    @classmethod
    def _known_metrics_addr(cls, text: str) -> str:
        if text:
            try:
                split_address(text, default_port=METRICS_PORT, what="expected IP[:PORT]")
            except errors.UserError as cause:
                raise ValueError(str(cause)) from cause
        return text

    @field_validator("registry_mirrors")
    @classmethod
    def _known_mirrors(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        try:
            parse_mirrors(texts)
        except errors.UserError as cause:
            raise ValueError(str(cause)) from cause
        return texts

    @field_validator("data_root", "exec_root", "registry_certs")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        if not path.is_absolute():
            raise ValueError("must be an absolute path")
        return path

    @field_validator("cgroup_parent")
    @classmethod
    def _below_root(cls, text: str) -> str:
        if not text.startswith("/") or text == "/" or ".." in text.split("/"):
            raise ValueError("must be an absolute cgroup path below the root, such as /fleet")
        return text.rstrip("/")

    @field_validator("hosts")
    @classmethod
    def _known_schemes(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not host.startswith(("unix:///", "tcp://")):
                raise ValueError(f"{host}: expected unix:///PATH or tcp://ADDRESS:PORT")
        return hosts

    @property
    def client_rate(self) -> Rate | None:
        """How often one client is answered over TCP; None without a limit."""
        return parse_rate(self.api_rate_client)

    @property
    def address_rate(self) -> Rate | None:
        """How often all clients of one address are."""
        return parse_rate(self.api_rate_address)

    @property
    def registry_options(self) -> RegistryOptions:
        """How this host reaches registries."""
        return RegistryOptions(
            insecure_registries=self.insecure_registries,
            certificates=self.registry_certs,
            mirrors=parse_mirrors(self.registry_mirrors),
        )

    @property
    def engine_labels(self) -> dict[str, str]:
        """``--label key=value`` as a mapping."""
        return dict(label.partition("=")[::2] for label in self.labels)


_FLAGS: Final[Sequence[tuple[tuple[str, ...], dict[str, Any]]]] = (
    (("--config",), {"metavar": "FILE", "help": f"configuration file (default {DEFAULT_CONFIG}, if it exists)"}),
    (("--data-root",), {"metavar": "DIR", "help": "state that survives a reboot (default /var/lib/fleet)"}),
    (
        ("--exec-root",),
        {"metavar": "DIR", "help": "state of the running host: sockets, namespaces (default /run/fleet)"},
    ),
    (("-H", "--host"), {"dest": "hosts", "action": "append", "metavar": "URL", "help": "listen here (repeatable)"}),
    (
        ("--api-rate-client",),
        {
            "metavar": "RATE[:BURST]|off",
            "help": "requests a second, and at once, of one token, user or certificate over TCP (default 200:2000)",
        },
    ),
    (
        ("--api-rate-address",),
        {
            "metavar": "RATE[:BURST]|off",
            "help": "the same of all clients of one address together (default 1000:10000)",
        },
    ),
    (
        ("--metrics-addr",),
        {
            "metavar": "IP[:PORT]",
            "help": "also serve /metrics here, in the clear: names of services can be read there (default: only at --host)",
        },
    ),
    (
        ("--otlp-endpoint",),
        {"metavar": "URL", "help": "send traces of changes to this OpenTelemetry collector, such as http://HOST:4318"},
    ),
    (("-G", "--group"), {"help": "group that may use the unix socket"}),
    (
        ("--tlsverify",),
        {
            "action": "store_true",
            "default": None,
            "help": "clients must show a certificate of --tlscacert (else: or a token)",
        },
    ),
    (("--tlscacert",), {"metavar": "FILE", "help": "trust certificates signed by this authority"}),
    (("--tlscert",), {"metavar": "FILE", "help": "the TCP listener's certificate"}),
    (("--tlskey",), {"metavar": "FILE", "help": "the TCP listener's key"}),
    (("--cgroup-parent",), {"metavar": "PATH", "help": "parent of all containers' cgroups (default /fleet)"}),
    (
        ("--userns-remap",),
        {
            "choices": ("auto", "off"),
            "help": "auto: a user namespace for every container that can have one (default); off: for those that ask",
        },
    ),
    (
        ("--rootless",),
        {
            "action": "store_true",
            "default": None,
            "help": "run as an ordinary user, root only in namespaces of its own (default when not started by root)",
        },
    ),
    (("--rootless-entered",), {"action": "store_true", "default": None, "help": argparse.SUPPRESS}),
    (("--hostname",), {"help": "this node's name (default: the host's)"}),
    (("--label",), {"dest": "labels", "action": "append", "metavar": "KEY=VALUE", "help": "engine label (repeatable)"}),
    (
        ("--insecure-registry",),
        {"dest": "insecure_registries", "action": "append", "metavar": "HOST[:PORT]", "help": "allow plain HTTP to it"},
    ),
    (
        ("--registry-mirror",),
        {
            "dest": "registry_mirrors",
            "action": "append",
            "metavar": "[REGISTRY=]URL",
            "help": "ask this mirror before the registry (default Docker Hub; repeatable)",
        },
    ),
    (
        ("--registry-certs",),
        {"metavar": "DIR", "help": "DIR/HOST[:PORT]/: ca.crt, client.cert, client.key (default /etc/fleet/certs.d)"},
    ),
    (
        ("--dashboard",),
        {
            "choices": [mode.value for mode in DashboardMode],
            "help": "page at /: auto (default; socket, and TCP with TLS), on, off",
        },
    ),
    (
        ("--dashboard-host",),
        {
            "dest": "dashboard_hosts",
            "action": "append",
            "metavar": "NAME",
            "help": "answer requests in the clear for this host name too, as behind a proxy (repeatable)",
        },
    ),
    (("--store",), {"metavar": "etcd://HOST:PORT,...", "help": "keep cluster state in this etcd (default: own file)"}),
    (("--store-cacert",), {"metavar": "FILE", "help": "speak TLS to etcd, trust this authority"}),
    (("--store-cert",), {"metavar": "FILE", "help": "certificate to show to etcd"}),
    (("--store-key",), {"metavar": "FILE", "help": "its key"}),
    (("--log-level",), {"choices": ["debug", "info", "warning", "error"], "help": "default info"}),
    (("--log-format",), {"choices": ["text", "json"], "help": "default text"}),
)


def load_config(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> DaemonConfig:
    """Flags over file over defaults. Raises ``UserError`` naming the flag or the file and key; argparse exits for usage."""
    parser = argparse.ArgumentParser(
        prog="fleetd", description="fleet's daemon: one on every host.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"fleetd {__version__}")
    for names, options in _FLAGS:
        parser.add_argument(*names, **options)
    flags = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    file = flags.pop("config", None)
    environment = os.environ if environment is None else environment
    rootless = bool(flags.get("rootless") or flags.get("rootless_entered")) or os.geteuid() != 0
    flags["rootless"] = rootless
    default_file = (
        _user_folder(environment, "XDG_CONFIG_HOME", ".config") / "fleetd.toml" if rootless else DEFAULT_CONFIG
    )
    settings = _read_file(Path(file) if file else default_file, required=file is not None)
    source = f"{file or default_file} and flags" if settings else "flags"
    settings |= flags
    if rootless:
        settings = _rootless_defaults(settings, environment) | settings
    try:
        return DaemonConfig.model_validate(settings)
    except ValidationError as cause:
        first = cause.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise errors.UserError(f"configuration ({source}): {place}: {first['msg']}") from cause


def _rootless_defaults(settings: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """Folders and socket of a user. Raises ``UserError`` when the environment does not tell where."""
    defaults: dict[str, Any] = {}
    if "data_root" not in settings:
        defaults["data_root"] = _user_folder(environment, "XDG_DATA_HOME", ".local/share")
    if "exec_root" not in settings:
        if not environment.get("XDG_RUNTIME_DIR", "").startswith("/"):
            raise errors.UserError(
                "XDG_RUNTIME_DIR is not set: log in through a session (ssh, or machinectl shell USER@, not su), or give "
                "--exec-root a folder of yours that does not survive a reboot"
            )
        defaults["exec_root"] = Path(environment["XDG_RUNTIME_DIR"]) / "fleet"
    if "hosts" not in settings:
        defaults["hosts"] = (f"unix://{settings.get('exec_root', defaults.get('exec_root'))}/fleet.sock",)
    return defaults


def _user_folder(environment: Mapping[str, str], variable: str, below_home: str) -> Path:
    if environment.get(variable, "").startswith("/"):
        return Path(environment[variable]) / "fleet"
    if not environment.get("HOME", "").startswith("/"):
        raise errors.UserError(f"neither {variable} nor HOME is set, so there is no place for a user's fleet; set one")
    return Path(environment["HOME"]) / below_home / "fleet"


def _read_file(path: Path, *, required: bool) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as cause:
        if required:
            raise errors.UserError(f"configuration file {path}: not there") from cause
        return {}
    except (OSError, UnicodeDecodeError) as cause:
        raise errors.UserError(f"configuration file {path}: {cause}") from cause
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as cause:
        raise errors.UserError(f"configuration file {path}: {cause}") from cause
