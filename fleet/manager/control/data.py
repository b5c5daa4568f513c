"""Secrets and configs: named, immutable data; only labels change (SCF-03, SCF-04, SCF-08)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Generic, TypeVar

import msgspec

from fleet import errors
from fleet.api.http import Filters
from fleet.manager.control.context import Context, required_version
from fleet.manager.control.filters import any_prefix, has_labels, one_of
from fleet.manager.control.service_spec import check_labels
from fleet.manager.secret_drivers import check_driver
from fleet.model.ids import ConfigId, SecretId
from fleet.model.names import data_name_fault
from fleet.model.secret import SECRET_BYTES_MAX, TEMPLATE_DRIVER, Config, ConfigSpec, Secret, SecretSpec
from fleet.model.service import Service
from fleet.store import Table, Transaction

__all__ = ["CONFIG_BYTES_MAX", "SECRET_BYTES_MAX", "ConfigControl", "SecretControl"]

CONFIG_BYTES_MAX: Final = 1000 * 1024

FILTERS: Final = frozenset({"id", "name", "names", "label"})

T = TypeVar("T", Secret, Config)
S = TypeVar("S", SecretSpec, ConfigSpec)


class _DataControl(Generic[T]):
    """What secrets and configs share."""

    def __init__(self, context: Context, table: Table[T], *, bytes_max: int) -> None:
        self._context = context
        self._table: Table[T] = table
        self._bytes_max = bytes_max
        self._word = table.kind.value

    def find(self, text: str) -> T:
        """By id, name or unique prefix of the id."""
        return self._table.find(text)

    def list(self, filters: Filters | None = None) -> list[T]:
        """Filters: ``id`` and ``name`` (prefixes), ``names`` (exact), ``label``."""
        wanted = filters or {}
        return [
            item
            for item in self._table.all()
            if any_prefix(wanted, "id", item.id)
            and any_prefix(wanted, "name", item.spec.name)
            and one_of(wanted, "names", item.spec.name)
            and has_labels(wanted, "label", item.spec.labels)
        ]

    async def remove(self, text: str) -> None:
        """Raises ``UserError`` naming the services that use it."""
        found = self.find(text)

        def attempt() -> Transaction:
            item = self.find(found.id)
            names = sorted(s.spec.name for s in self._context.store.services.all() if self._uses(s, item.id))
            if names:
                word = "service" if len(names) == 1 else "services"
                raise errors.UserError(
                    f"{self._word} '{item.spec.name}' is in use by the following {word}: {', '.join(names)}"
                )
            return Transaction().delete(item)

        await self._context.guarded(attempt)

    def _uses(self, service: Service, id_: str) -> bool:
        return not service.pending_delete and id_ in self._references(service)

    def _references(self, service: Service) -> Iterator[str]:
        raise NotImplementedError

    def _check(self, spec: SecretSpec | ConfigSpec) -> None:
        if fault := data_name_fault(spec.name):
            raise errors.UserError(fault)
        check_labels(spec.labels, what=self._word)
        if isinstance(spec, SecretSpec) and spec.driver is not None:
            check_driver(spec)
        elif not 0 < len(spec.data) < self._bytes_max:
            raise errors.UserError(f"{self._word} data must be larger than 0 and less than {self._bytes_max} bytes")
        if spec.templating is not None and spec.templating.name not in ("", TEMPLATE_DRIVER):
            raise errors.UserError(
                f"{self._word} {spec.name}: template driver {spec.templating.name!r} is not known, only {TEMPLATE_DRIVER}"
            )

    async def _update(self, text: str, labels: dict[str, str], *, name: str, data: bytes, version: int | None) -> T:
        """New labels; name and data may be repeated but not changed."""
        read_at = required_version(version, what=self._word)
        item = self.find(text)
        if (name and name != item.spec.name) or (data and data != item.spec.data):
            raise errors.UserError("only updates to Labels are allowed")
        check_labels(labels, what=self._word)
        spec = msgspec.structs.replace(item.spec, labels=labels)
        changed = msgspec.structs.replace(item, spec=spec, version=read_at, updated_at=self._context.now())
        await self._context.store.commit(Transaction().replace(changed))
        return self.find(item.id)


class SecretControl(_DataControl[Secret]):
    """See the module."""

    def __init__(self, context: Context) -> None:
        super().__init__(context, context.store.secrets, bytes_max=SECRET_BYTES_MAX)

    async def create(self, spec: SecretSpec) -> Secret:
        """Raises ``UserError``, ``ConflictError`` (name taken)."""
        if spec.driver is not None and not spec.driver.name:
            spec = msgspec.structs.replace(spec, driver=None)
        self._check(spec)
        now = self._context.now()
        secret = Secret(id=SecretId(self._context.new_id()), created_at=now, updated_at=now, spec=spec)
        await self._context.store.commit(Transaction().create(secret))
        return self.find(secret.id)

    async def update(self, text: str, spec: SecretSpec, *, version: int | None) -> Secret:
        """Raises ``UserError`` if more than labels would change, ``OutOfSequenceError``."""
        return await self._update(text, spec.labels, name=spec.name, data=spec.data, version=version)

    def _references(self, service: Service) -> Iterator[str]:
        return (reference.secret_id for reference in service.spec.task_template.container_spec.secrets)


class ConfigControl(_DataControl[Config]):
    """See the module."""

    def __init__(self, context: Context) -> None:
        super().__init__(context, context.store.configs, bytes_max=CONFIG_BYTES_MAX)

    async def create(self, spec: ConfigSpec) -> Config:
        """Raises ``UserError``, ``ConflictError`` (name taken)."""
        self._check(spec)
        now = self._context.now()
        config = Config(id=ConfigId(self._context.new_id()), created_at=now, updated_at=now, spec=spec)
        await self._context.store.commit(Transaction().create(config))
        return self.find(config.id)

    async def update(self, text: str, spec: ConfigSpec, *, version: int | None) -> Config:
        """Raises ``UserError`` if more than labels would change, ``OutOfSequenceError``."""
        return await self._update(text, spec.labels, name=spec.name, data=spec.data, version=version)

    def _references(self, service: Service) -> Iterator[str]:
        return (reference.config_id for reference in service.spec.task_template.container_spec.configs)
