"""Containers that no service made come to an attachable network and go again; their nodes ask for it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any, Final

import msgspec

from fleet import errors
from fleet.clock import Clock
from fleet.manager.control.context import Context
from fleet.model.guest import Guest, guest_id
from fleet.model.ids import NodeId
from fleet.model.network import Network
from fleet.store import Kind, Store, Transaction

__all__ = ["GuestRequest", "Guests"]

_PATIENCE_S: Final = 10.0
_NAMES_MAX: Final = 64
_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}")
_CONTAINER: Final = re.compile(r"[0-9a-f]{12,64}")


class GuestRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a node says of its container. ``network`` is a name or an id, ``address`` empty for any."""

    network: str
    container_id: str
    names: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    address: str = ""
    address6: str = ""


class Guests:
    """On every manager; addresses are the leader's allocator's to choose."""

    def __init__(self, store: Store, clock: Clock, entropy: Callable[[int], bytes]) -> None:
        self._store = store
        self._context = Context(store, clock, entropy)

    def network(self, name: str) -> Network:
        """The network, if plain containers may join it. Raises ``NotFoundError``, ``ForbiddenError``."""
        network = self._store.networks.find(name)
        if not network.spec.attachable:
            raise errors.ForbiddenError(
                f"could not attach to network {network.spec.name}: it is not attachable by hand; create it with --attachable, or "
                "run the container as a service"
            )
        return network

    async def join(self, node_id: NodeId, request: GuestRequest) -> Guest:
        """Give the container its place; the same again if it has it already. Raises ``UserError``, ``NotFoundError``,
        ``ForbiddenError``, ``ConflictError`` when there is no address, ``UnavailableError`` when nobody allocates."""
        _check(request)
        network = self.network(request.network)
        id_ = guest_id(request.container_id, network.id)
        wanted = {
            "node_id": node_id,
            "names": request.names,
            "aliases": request.aliases,
            "wanted_address": request.address,
            "wanted_address6": request.address6,
        }
        with self._store.subscribe(Kind.GUEST) as changes:
            present = self._store.guests.get(id_)
            if present is None or any(getattr(present, key) != value for key, value in wanted.items()):
                await self._write(id_, network, request.container_id, wanted)
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    while True:
                        guest = self._store.guests.get(id_)
                        if guest is None:
                            raise errors.ConflictError(
                                f"container {request.container_id[:12]} left the network meanwhile"
                            )
                        if guest.address:
                            return guest
                        if guest.err:
                            await self.leave(node_id, request.container_id, network.id)
                            raise errors.ConflictError(guest.err)
                        await changes.wait()
            except TimeoutError:
                await self.leave(node_id, request.container_id, network.id)
                raise errors.UnavailableError(
                    f"network {network.spec.name}: no manager gave an address within {_PATIENCE_S:g} s", retry_after_s=1
                ) from None

    async def leave(self, node_id: NodeId, container_id: str, network_id: str) -> None:
        """Its address is free again; unknown, or another node's, is fine."""
        guest = self._store.guests.get(guest_id(container_id, network_id))
        while guest is not None and guest.node_id == node_id:
            try:
                await self._store.commit(Transaction().delete(guest))
            except errors.OutOfSequenceError:
                guest = self._store.guests.get(guest.id)
            else:
                return

    async def _write(self, id_: str, network: Network, container_id: str, wanted: dict[str, Any]) -> None:
        def attempt() -> Transaction:
            self.network(network.id)  # it may be removed meanwhile, and then it is not joined any more
            now = self._context.now()
            guest = Guest(
                id=id_, created_at=now, updated_at=now, network_id=network.id, container_id=container_id, **wanted
            )
            present = self._store.guests.get(id_)
            if present is None:
                return Transaction().create(guest)
            return Transaction().replace(msgspec.structs.replace(guest, version=present.version))

        await self._context.guarded(attempt)


def _check(request: GuestRequest) -> None:
    names = (*request.names, *request.aliases)
    if not _CONTAINER.fullmatch(request.container_id) or len(names) > _NAMES_MAX:
        raise errors.UserError("guest: the container's id is malformed, or it has too many names")
    for name in names:
        if not _NAME.fullmatch(name):
            raise errors.UserError(f"guest: {name[:80]!r} is not a name")
