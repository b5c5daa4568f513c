"""This node's certificate while it is a member: shown to others, renewed in time, and the roots it trusts kept up to date.

A certificate is renewed when 50 to 80 % of its life are over (SEC-04), when the cluster wants it from another root (a root
rotation), and when its role is no longer the node's (promotion, demotion): ``renew_now``. Connections made from then on
use the new one; open ones keep theirs. The cluster listener changes certificate *and* trust between two handshakes by its
SNI callback, which OpenSSL lets choose the context of a connection: contexts themselves can learn roots but not forget them.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final

import httpx
import msgspec

from fleet import errors
from fleet.api.dispatch import Trust
from fleet.cancellation import TaskGroup, cancel_and_wait
from fleet.clock import Clock
from fleet.daemon.joining import ask_managers, checked
from fleet.identity.authority import root_info
from fleet.identity.certificates import renewal_instant
from fleet.identity.keys import NodeIdentity, generate_request, issuing_root, make_identity, save_identity
from fleet.identity.tls import client_context, server_context
from fleet.logs import get_logger
from fleet.model.common import TlsInfo
from fleet.model.ids import NodeId
from fleet.model.node import NodeRole
from fleet.store.sealing import write_secret

__all__ = ["REMOVED_FILE", "USERS_FILE", "IdentityKeeper", "known_users"]

log = get_logger("identity")

REMOVED_FILE: Final = "removed.json"
USERS_FILE: Final = "users.json"
_LOOK_S: Final = 3600.0
"""Wall clocks jump: however far off the renewal is, look again after this long."""
_RETRY_FIRST_S: Final = 1.0
_RETRY_MAX_S: Final = 60.0


class IdentityKeeper:
    """``run`` until cancelled. ``managers`` are the cluster addresses to ask for certificates; ``role_changed`` is called when
    a new certificate names another role."""

    def __init__(
        self,
        folder: Path,
        identity: NodeIdentity,
        clock: Clock,
        *,
        managers: Callable[[], tuple[str, ...]],
        role_changed: Callable[[], None] = lambda: None,
        passphrase: bytes | None = None,
    ) -> None:
        self._folder = folder
        self._clock = clock
        self._managers = managers
        self._role_changed = role_changed
        self._passphrase = passphrase
        self._due = asyncio.Event()
        self._trust: Trust | None = None
        self._trust_came = asyncio.Event()
        self.removed = frozenset(NodeId(node_id) for node_id in _load_names(folder / REMOVED_FILE))
        """Nodes that are to be refused although their certificates are good."""
        self.users = _load_names(folder / USERS_FILE)
        """Names of users of the API."""
        self._kept: dict[str, frozenset[str]] = {REMOVED_FILE: frozenset(self.removed), USERS_FILE: self.users}
        self._take(identity)
        self.listener_tls = server_context(identity, client_certificates="optional")
        self.listener_tls.sni_callback = self._choose_context

    def _take(self, identity: NodeIdentity) -> None:
        self.identity = identity
        self._client = client_context(identity)
        self._server = server_context(identity, client_certificates="optional")
        self.tls_info: TlsInfo = msgspec.structs.replace(root_info(issuing_root(identity)), trust_root=identity.ca_pem)

    def _choose_context(self, connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _: ssl.SSLContext) -> None:
        connection.context = self._server

    def client_tls(self) -> ssl.SSLContext:
        """The context for connections as this node, of the present identity."""
        return self._client

    def renew_now(self) -> None:
        """Ask for a new certificate at once."""
        self._due.set()

    async def relock(self, passphrase: bytes | None) -> None:
        """From now on the key on disk is encrypted with this, or with nothing."""
        self._passphrase = passphrase
        await self._save(self.identity)

    async def _save(self, identity: NodeIdentity) -> None:
        await asyncio.to_thread(save_identity, self._folder, identity, passphrase=self._passphrase)

    def follow(self, trust: Trust) -> None:
        """What the manager said of whom to trust; taken up by ``run``."""
        self.removed = frozenset(trust.removed)
        self.users = frozenset(trust.users)
        self._trust = trust
        self._trust_came.set()

    async def run(self) -> None:
        """Until cancelled."""
        async with TaskGroup() as group:
            group.create_task(self._keep_renewed())
            group.create_task(self._keep_trust())

    async def _keep_trust(self) -> None:
        while True:
            await self._trust_came.wait()
            self._trust_came.clear()
            trust = self._trust
            if trust is None:
                continue
            for name, names in ((REMOVED_FILE, frozenset[str](self.removed)), (USERS_FILE, self.users)):
                if names != self._kept[name]:
                    await asyncio.to_thread(_save_names, self._folder / name, names)
                    self._kept[name] = names
            if trust.roots_pem != self.identity.ca_pem:
                try:
                    changed = make_identity(
                        cert_pem=self.identity.cert_pem, key_pem=self.identity.key_pem, ca_pem=trust.roots_pem
                    )
                except errors.FleetError as cause:
                    log.error("trusted roots not changed: they would not vouch for this node", cause=str(cause))
                    continue
                await self._save(changed)
                self._take(changed)
                log.info("trusted roots changed", roots=trust.roots_pem.count("BEGIN CERTIFICATE"))
            if not self._is_as_wanted(trust):
                self.renew_now()

    def _is_as_wanted(self, trust: Trust) -> bool:
        return self.tls_info.cert_issuer_public_key == trust.issuer_key and self.identity.role is trust.role

    async def _keep_renewed(self) -> None:
        fraction = random.random()  # noqa: S311 - spreading renewals, not secrets
        pause_s = _RETRY_FIRST_S
        while True:
            if not self._due.is_set():
                remaining = renewal_instant(self.identity.cert_pem, fraction) - self._clock.now()
                if remaining.total_seconds() > 0:
                    await self._wait(min(remaining.total_seconds(), _LOOK_S))
                    continue
            if await self._renew():
                self._due.clear()
                pause_s = _RETRY_FIRST_S
                if self._trust is not None and not self._is_as_wanted(self._trust):
                    await self._clock.sleep(
                        _RETRY_FIRST_S
                    )  # that manager has not heard of it yet, or it changed meanwhile
                    self._trust_came.set()
                continue
            await self._clock.sleep(pause_s)
            pause_s = min(pause_s * 2, _RETRY_MAX_S)

    async def _wait(self, duration_s: float) -> None:
        """For that long, or until ``renew_now``."""
        due = asyncio.ensure_future(self._due.wait())
        time = asyncio.ensure_future(self._clock.sleep(duration_s))
        try:
            await asyncio.wait({due, time}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel_and_wait(due, time)

    async def _renew(self) -> bool:
        key = generate_request()
        try:
            async with httpx.AsyncClient(verify=self._client, timeout=10.0, trust_env=False) as client:

                async def ask(manager: str) -> NodeIdentity:
                    answer = checked(await client.post(f"https://{manager}/cluster/v1/renew", content=key.csr_pem))
                    return make_identity(cert_pem=answer.text, key_pem=key.key_pem, ca_pem=self.identity.ca_pem)

                identity = await ask_managers(
                    self._managers(), ask, failure="no manager has certified it", on=(errors.FleetError,)
                )
        except errors.UnavailableError as cause:
            log.warning("certificate not renewed; trying again", cause=str(cause))
            return False
        before = self.identity.role
        if identity.role is NodeRole.WORKER:
            self._passphrase = None  # only managers are locked
        await self._save(identity)
        self._take(identity)
        if identity.role is not before:
            self._role_changed()
        log.info("certificate renewed", not_after=identity.not_after.isoformat(), role=identity.role.value)
        return True


def _load_names(path: Path) -> frozenset[str]:
    """What the managers said last, so that it holds from a start on, before there is a session."""
    try:
        return frozenset(msgspec.json.decode(path.read_bytes(), type=list[str]))
    except FileNotFoundError:
        return frozenset()
    except (OSError, msgspec.DecodeError) as cause:
        log.warning("not known until a manager says so", file=path.name, cause=str(cause))
        return frozenset()


def _save_names(path: Path, names: frozenset[str]) -> None:
    try:
        write_secret(path, msgspec.json.encode(sorted(names)))
    except OSError as cause:  # a full disk must not keep the node from following its managers
        log.warning("not kept for the next start", file=path.name, cause=str(cause))


def known_users(folder: Path) -> frozenset[str]:
    """Names of users as a node with its identity in ``folder`` was last told."""
    return _load_names(folder / USERS_FILE)
