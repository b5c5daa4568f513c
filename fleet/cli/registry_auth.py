"""Registry logins in Docker's own file and by its credential helpers, as the header the engine API takes."""

from __future__ import annotations

import base64
import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from fleet import errors

__all__ = [
    "HUB",
    "auth_headers",
    "encode_auth",
    "erase_login",
    "read_login",
    "registry_key",
    "registry_of",
    "store_login",
]

Json = dict[str, Any]

HUB: Final = "https://index.docker.io/v1/"
"""Docker Hub's key in the file."""

_FILE_MAX: Final = 1024 * 1024
_HUB_NAMES: Final = frozenset({"", "docker.io", "index.docker.io", "registry-1.docker.io"})
_HELPER: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", re.ASCII)
_HELPER_WAIT_S: Final = 120  # it may ask somebody for a passphrase
_TOKEN_USER: Final = "<token>"  # noqa: S105 - the protocol's word, no secret
"""The user name under which helpers keep identity tokens."""


def registry_of(image: str) -> str:
    """The host an image is pulled from, as Docker's file names it."""
    first, separator, _ = image.partition("/")
    if separator and ("." in first or ":" in first or first == "localhost"):
        return registry_key(first)
    return HUB


def registry_key(server: str) -> str:
    """What Docker's file calls a registry that people name by host or URL."""
    host = server.strip().rpartition("://")[2].partition("/")[0]
    return HUB if host in _HUB_NAMES else host


def auth_headers(image: str, environment: Mapping[str, str]) -> dict[str, str]:
    """``X-Registry-Auth`` for the image's registry; no header when there is no login.

    Raises ``UserError`` when the file is unreadable or a credential helper fails.
    """
    login = read_login(registry_of(image), environment)
    return {"X-Registry-Auth": encode_auth(login)} if login else {}


def encode_auth(login: Json) -> str:
    """The header's value."""
    return base64.urlsafe_b64encode(json.dumps(login).encode()).decode()


def read_login(registry: str, environment: Mapping[str, str]) -> Json | None:
    """The engine API's ``AuthConfig`` for a registry, or None when nobody logged in."""
    path = _path(environment)
    config = _read(path)
    helper = _helper(config, registry, path)
    if helper:
        found = _call(helper, "get", registry, environment)
        if found is None:
            return None
        try:
            answer = json.loads(found)
            user, secret = str(answer["Username"]), str(answer["Secret"])
        except (ValueError, KeyError, TypeError) as cause:
            raise errors.UserError(f"docker-credential-{helper} answered something that is not a login") from cause
        who = {"identitytoken": secret} if user == _TOKEN_USER else {"username": user, "password": secret}
        return {**who, "serveraddress": registry}
    entry = _auths(config, path).get(registry)
    if not isinstance(entry, dict) or not (entry.get("auth") or entry.get("identitytoken")):
        return None
    try:
        text = base64.b64decode(entry.get("auth") or "", validate=True).decode()
    except (TypeError, ValueError) as cause:
        raise errors.UserError(f"the login for {registry} in {path} is not readable") from cause
    user, _, password = text.partition(":")
    if entry.get("identitytoken"):
        return {"username": user, "identitytoken": str(entry["identitytoken"]), "serveraddress": registry}
    return {"username": user, "password": password.rstrip("\0"), "serveraddress": registry}


def store_login(login: Json, environment: Mapping[str, str]) -> str:
    """Keep a login (an ``AuthConfig``) where the file says logins are kept; a sentence about secrets in the clear."""
    path = _path(environment)
    config = _read(path)
    registry, token = login["serveraddress"], login.get("identitytoken", "")
    helper = _helper(config, registry, path)
    if helper:
        kept = {
            "ServerURL": registry,
            "Username": _TOKEN_USER if token else login["username"],
            "Secret": token or login["password"],
        }
        if _call(helper, "store", json.dumps(kept), environment) is None:
            raise errors.UserError(f"docker-credential-{helper} did not keep the login for {registry}")
        return ""
    secret = "" if token else login["password"]
    pair = base64.b64encode(f"{login['username']}:{secret}".encode()).decode()
    auths = {**_auths(config, path), registry: {"auth": pair, **({"identitytoken": token} if token else {})}}
    _write(path, {**config, "auths": auths})
    return f"The password is stored unencrypted in {path}; set credsStore there to keep it in a credential helper."


def erase_login(registry: str, environment: Mapping[str, str]) -> bool:
    """Forget a login; whether there was one."""
    path = _path(environment)
    config = _read(path)
    helper = _helper(config, registry, path)
    known = False
    if helper:
        known = _call(helper, "get", registry, environment) is not None
        if known:
            _call(helper, "erase", registry, environment)
    auths = dict(_auths(config, path))
    if auths.pop(registry, None) is not None:
        known = True
        _write(path, {**config, "auths": auths})
    return known


def _path(environment: Mapping[str, str]) -> Path:
    folder = environment.get("DOCKER_CONFIG") or f"{environment.get('HOME', '/root')}/.docker"
    return Path(folder) / "config.json"


def _read(path: Path) -> Json:
    try:
        with path.open("rb") as file:
            config = json.loads(file.read(_FILE_MAX))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as cause:
        raise errors.UserError(f"cannot read registry logins from {path}: {cause}") from cause
    if not isinstance(config, dict):
        raise errors.UserError(f"cannot read registry logins from {path}: not a JSON object")
    return config


def _write(path: Path, config: Json) -> None:
    """Whole or not at all, and for its owner alone; a link to a file elsewhere stays one."""
    target = path.resolve()
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(prefix=".config.json-", dir=target.parent)  # 0600
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(config, file, indent="\t")
                file.flush()
                os.fsync(file.fileno())
            Path(partial).replace(target)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise
    except OSError as cause:
        raise errors.UserError(f"cannot write registry logins to {path}: {cause}") from cause


def _auths(config: Json, path: Path) -> Json:
    found = config.get("auths") or {}
    if not isinstance(found, dict):
        raise errors.UserError(f"cannot read registry logins from {path}: auths is not an object")
    return found


def _helper(config: Json, registry: str, path: Path) -> str:
    """The credential helper for a registry, or nothing."""
    helpers = config.get("credHelpers")
    name = (helpers.get(registry) if isinstance(helpers, dict) else None) or config.get("credsStore") or ""
    if name and not (isinstance(name, str) and _HELPER.fullmatch(name)):
        raise errors.UserError(f"{path} names a credential helper that cannot be one: {str(name)[:80]!r}")
    return str(name)


def _call(helper: str, verb: str, said: str, environment: Mapping[str, str]) -> bytes | None:
    """Run ``docker-credential-HELPER VERB`` with its input; None when it knows no such login."""
    import shutil
    import subprocess

    program = shutil.which(f"docker-credential-{helper}", path=environment.get("PATH"))
    if program is None:
        raise errors.UserError(f"docker-credential-{helper}, which keeps registry logins, is not installed")
    try:
        done = subprocess.run(
            [program, verb], input=said.encode(), capture_output=True, check=False,
            timeout=_HELPER_WAIT_S, env=dict(environment),
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as cause:
        raise errors.UserError(f"docker-credential-{helper} {verb}: {cause}") from cause
    if done.returncode == 0:
        return done.stdout[:_FILE_MAX]
    words = (done.stdout + done.stderr)[:1000].decode(errors="replace").strip()
    if "credentials not found" in words:
        return None
    raise errors.UserError(f"docker-credential-{helper} {verb}: {words or f'exit code {done.returncode}'}")
