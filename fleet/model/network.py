"""Networks of the cluster. Docker's network object is flat; the API renders it from these."""

from __future__ import annotations

from datetime import datetime

import msgspec

from fleet.model.common import Version
from fleet.model.ids import NetworkId
from fleet.model.wire import Value

__all__ = ["ENCRYPTED_OPTION", "INGRESS_NETWORK_NAME", "ConfigFrom", "Ipam", "IpamConfig", "Network", "NetworkSpec"]

INGRESS_NETWORK_NAME = "ingress"
ENCRYPTED_OPTION = "encrypted"
_YES = ("", "true", "1")


class IpamConfig(Value, frozen=True, kw_only=True):
    subnet: str = ""
    ip_range: str = msgspec.field(default="", name="IPRange")
    gateway: str = ""
    auxiliary_addresses: dict[str, str] = {}

    @property
    def is_ipv6(self) -> bool:
        """Whether the subnet is of IPv6; one that is still to be chosen is not."""
        return ":" in self.subnet


class Ipam(Value, frozen=True, kw_only=True):
    driver: str = "default"
    options: dict[str, str] = {}
    config: tuple[IpamConfig, ...] = ()


class ConfigFrom(Value, frozen=True, kw_only=True):
    network: str = ""


class NetworkSpec(Value, frozen=True, kw_only=True):
    """The body of ``POST /networks/create``."""

    name: str = ""
    driver: str = ""
    scope: str = ""
    internal: bool = False
    attachable: bool = False
    ingress: bool = False
    config_only: bool = False
    config_from: ConfigFrom | None = None
    enable_ipv4: bool | None = None
    enable_ipv6: bool | None = None
    ipam: Ipam | None = None
    options: dict[str, str] = {}
    labels: dict[str, str] = {}

    @property
    def is_encrypted(self) -> bool:
        """Whether its packets are to be sealed between hosts: option ``encrypted`` alone, or with a value that says yes."""
        return self.options.get(ENCRYPTED_OPTION, "false").lower() in _YES

    @property
    def needed_plugin(self) -> str:
        """The network plugin that a node must say it has."""
        return f"{self.driver}-encrypted" if self.is_encrypted else self.driver


class Network(Value, frozen=True, kw_only=True):
    """``ipam`` is what the allocator settled: a config with subnet and gateway for IPv4, and behind it one for IPv6 if the
    network has that; ``vni`` is unique in the cluster."""

    id: NetworkId
    version: Version = Version()
    created_at: datetime
    updated_at: datetime
    spec: NetworkSpec
    ipam: Ipam = Ipam()
    vni: int = 0

    @property
    def ipv4(self) -> IpamConfig:
        """The settled IPv4 subnet; empty while there is none."""
        return next((config for config in self.ipam.config if not config.is_ipv6), IpamConfig())

    @property
    def ipv6(self) -> IpamConfig:
        """The settled IPv6 subnet; empty when there is none."""
        return next((config for config in self.ipam.config if config.is_ipv6), IpamConfig())
