"""Networks of the cluster. Docker's network object is flat; the API renders it from these."""

from __future__ import annotations

from datetime import datetime

import msgspec

from fleet.model.common import Version
from fleet.model.ids import NetworkId
from fleet.model.wire import Value

__all__ = ["INGRESS_NETWORK_NAME", "ConfigFrom", "Ipam", "IpamConfig", "Network", "NetworkSpec"]

INGRESS_NETWORK_NAME = "ingress"


class IpamConfig(Value, frozen=True, kw_only=True):
    subnet: str = ""
    ip_range: str = msgspec.field(default="", name="IPRange")
    gateway: str = ""
    auxiliary_addresses: dict[str, str] = {}


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


class Network(Value, frozen=True, kw_only=True):
    """``ipam`` is what the allocator settled: one config with subnet and gateway; ``vni`` is unique in the cluster."""

    id: NetworkId
    version: Version = Version()
    created_at: datetime
    updated_at: datetime
    spec: NetworkSpec
    ipam: Ipam = Ipam()
    vni: int = 0
