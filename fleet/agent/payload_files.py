"""A task's secrets and configs as files: read-only, on a tmpfs, at Swarm's places (SCF-01, SCF-02).

A *templated* one is text with placeholders, filled in for each task (SCF-06, TPL-04): those of ``fleet.agent.templates`` and

    {{ env "NAME" }}       a variable of the task's environment
    {{ secret "TARGET" }}  the secret the task has under that file name, as it is (its own placeholders stay)
    {{ config "TARGET" }}  likewise

So a config with a password inside is possible, and is as safe as a secret: both live on a tmpfs alone. What a placeholder
brought in is not looked through for placeholders again, so data can not smuggle in a reference to other data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Protocol

from fleet import errors
from fleet.agent.templates import expand
from fleet.api.dispatch import ConfigItem, SecretItem
from fleet.containers import FileMount
from fleet.model.service import ConfigReference, ContainerSpec, FileTarget, SecretReference

__all__ = ["Payloads", "payload_files"]

_SECRETS_FOLDER: Final = "/run/secrets/"
_FILLED_BYTES_MAX: Final = 1_000_000
"""A config's own bound holds for what its template became as well."""


class Payloads(Protocol):
    """Both raise ``UnavailableError`` while the item has not come from the manager."""

    def secret(self, secret_id: str) -> SecretItem: ...
    def config(self, config_id: str) -> ConfigItem: ...


def payload_files(spec: ContainerSpec, payloads: Payloads, values: Mapping[str, str]) -> tuple[FileMount, ...]:
    """Raises ``RejectedFault`` naming the file for a placeholder that means nothing to this task."""
    functions = _functions(spec, payloads, values)

    def content(item: SecretItem | ConfigItem, path: str) -> bytes:
        return _fill(item.data, values, functions, path) if item.templated else item.data

    files = []
    for secret in spec.secrets:
        target = _secret_target(secret)
        path = target if target.startswith("/") else _SECRETS_FOLDER + target
        files.append(_file(path, secret.file, content(payloads.secret(secret.secret_id), path)))
    for config in spec.configs:
        target = _config_target(config)
        path = target if target.startswith("/") else "/" + target
        files.append(_file(path, config.file, content(payloads.config(config.config_id), path)))
    return tuple(files)


def _functions(
    spec: ContainerSpec, payloads: Payloads, values: Mapping[str, str]
) -> dict[str, Callable[[str], str | None]]:
    secrets = {_secret_target(secret): secret.secret_id for secret in spec.secrets}
    configs = {_config_target(config): config.config_id for config in spec.configs}

    def env(name: str) -> str | None:
        found = [text.partition("=")[2] for text in spec.env if text.partition("=")[0] == name]
        return expand(found[-1], values) if found else None

    def secret(target: str) -> str | None:
        return _text(payloads.secret(secrets[target]).data) if target in secrets else None

    def config(target: str) -> str | None:
        return _text(payloads.config(configs[target]).data) if target in configs else None

    return {"env": env, "secret": secret, "config": config}


def _fill(
    data: bytes, values: Mapping[str, str], functions: Mapping[str, Callable[[str], str | None]], path: str
) -> bytes:
    try:
        filled = expand(_text(data), values, functions=functions).encode(errors="surrogateescape")
    except errors.RejectedFault as cause:
        raise errors.RejectedFault(f"file {path}: {cause}") from cause
    if len(filled) > _FILLED_BYTES_MAX:
        raise errors.RejectedFault(
            f"file {path}: its template became {len(filled)} bytes, more than {_FILLED_BYTES_MAX}"
        )
    return filled


def _text(data: bytes) -> str:
    """Bytes that are not UTF-8 pass through unchanged."""
    return data.decode(errors="surrogateescape")


def _secret_target(secret: SecretReference) -> str:
    return secret.file.name if secret.file and secret.file.name else secret.secret_name


def _config_target(config: ConfigReference) -> str:
    return config.file.name if config.file and config.file.name else config.config_name


def _file(path: str, target: FileTarget | None, data: bytes) -> FileMount:
    wanted = target or FileTarget()
    if not (wanted.uid.isdigit() and wanted.gid.isdigit()):
        raise errors.RejectedFault(f"file {path}: owner {wanted.uid}:{wanted.gid} must be numbers")
    return FileMount(target=path, data=data, uid=int(wanted.uid), gid=int(wanted.gid), mode=wanted.mode)
