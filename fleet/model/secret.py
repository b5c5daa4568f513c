"""Secrets and configs: immutable data by name. Secret data leaves the managers only to nodes that run its tasks."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from fleet.model.common import Driver, Version
from fleet.model.ids import ConfigId, SecretId
from fleet.model.wire import Value

__all__ = ["TEMPLATE_DRIVER", "Config", "ConfigSpec", "Secret", "SecretSpec"]

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
