"""Secrets and configs: immutable data by name; registry logins of services. Secret data and logins leave the managers only to
nodes that run their tasks.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from fleet.model.common import Driver, Version
from fleet.model.ids import ConfigId, LoginId, SecretId, ServiceId
from fleet.model.wire import Value

__all__ = ["SECRET_BYTES_MAX", "TEMPLATE_DRIVER", "Config", "ConfigSpec", "Login", "Secret", "SecretSpec"]

SECRET_BYTES_MAX: Final = 500 * 1024
TEMPLATE_DRIVER: Final = "golang"
"""The one ``templating`` there is: the agent fills in placeholders for each task (SCF-06)."""


class SecretSpec(Value, frozen=True, kw_only=True):
    """``data`` travels as base64; its repr is masked."""

    name: str = ""
    labels: dict[str, str] = {}
    data: bytes = b""
    driver: Driver | None = None
    templating: Driver | None = None

    def __repr__(self) -> str:
        return f"SecretSpec(name={self.name!r}, data=<{len(self.data)} bytes>)"


class ConfigSpec(Value, frozen=True, kw_only=True):
    name: str = ""
    labels: dict[str, str] = {}
    data: bytes = b""
    templating: Driver | None = None


class Secret(Value, frozen=True, kw_only=True):
    id: SecretId
    version: Version = Version()
    created_at: datetime
    updated_at: datetime
    spec: SecretSpec


class Config(Value, frozen=True, kw_only=True):
    id: ConfigId
    version: Version = Version()
    created_at: datetime
    updated_at: datetime
    spec: ConfigSpec


class Login(Value, frozen=True, kw_only=True):
    """What a service's tasks say to its registry: ``X-Registry-Auth`` as the client sent it. Never changed, stored encrypted, and
    shown to nobody; a task template names the one it is pulled with (``registry_login``), so that a rollback brings it back.
    """

    id: LoginId
    version: Version = Version()
    created_at: datetime
    service_id: ServiceId
    header: str = ""

    def __repr__(self) -> str:
        return f"Login(id={self.id!r}, service_id={self.service_id!r}, header=<{len(self.header)} characters>)"
