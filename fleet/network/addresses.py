"""Addresses of sandboxes' cards: those that managers gave, and on networks of this host alone what is free there."""

from __future__ import annotations

from collections.abc import Sequence

from fleet.errors import ConflictError, NotFoundError, UserError
from fleet.network.ipam import is_ipv6, mac_for, next_address
from fleet.network.known import Known
from fleet.network.rules import Family
from fleet.network.store import Store
from fleet.network.topology import AttachmentSpec, Interface, NetworkSpec, SandboxSpec

__all__ = ["Addresses"]


class Addresses:
    """In use is what a known sandbox has: an address is given once its sandbox is recorded."""

    def __init__(self, *, known: Known, store: Store) -> None:
        self._known = known
        self._store = store
        self._cursors: dict[str, str] = {}

    def open(self) -> None:
        """Go on after the last addresses given, so that they rotate."""
        self._cursors = self._store.cursors()

    def plan(self, spec: SandboxSpec) -> tuple[Interface, ...]:
        """The cards of a new sandbox, one for each attachment. Raises as ``card`` does."""
        planned: list[Interface] = []
        for number, attachment in enumerate(spec.attachments):
            planned.append(self.card(attachment, name=f"eth{number}", taken=planned))
        return self._known.with_gateway(planned)

    def card(self, attachment: AttachmentSpec, *, name: str, taken: Sequence[Interface]) -> Interface:
        """The card ``name`` for an attachment, beside ``taken``; without gateways.

        Raises ``NotFoundError`` for a network that is not here, ``UserError`` for an address that it cannot give,
        ``ConflictError`` for one that is in use.
        """
        state = self._known.states.get(attachment.network_id)
        if state is None:
            raise NotFoundError(
                f"network {attachment.network_id} is not on this host; it must be made before containers join it"
            )
        spec = state.network
        address = attachment.address
        if spec.is_local:
            address = self._address4(spec, attachment)
        elif address is None:
            raise UserError(f"network {spec.name}: an overlay attachment needs the address its managers gave it")
        address6 = self._address6(spec, attachment)
        for one in filter(None, (address, address6)):
            if any(one in (interface.address, interface.address6) for interface in taken):
                raise ConflictError(f"network {spec.name}: the container has address {one} already, on another network")
        return Interface(
            network_id=spec.id,
            name=name,
            address=address,
            prefix_len=spec.prefix_len,
            mac=attachment.mac or mac_for(address or address6),
            address6=address6,
            prefix_len6=spec.prefix_len6,
        )

    def _address4(self, spec: NetworkSpec, attachment: AttachmentSpec) -> str:
        """The card's IPv4 address on a network of this host; empty when that has none."""
        if spec.subnet:
            return self._allocate(spec, requested=attachment.address)
        if attachment.address:
            raise UserError(f"network {spec.name} has no IPv4: address {attachment.address} cannot be had there")
        return ""

    def _address6(self, spec: NetworkSpec, attachment: AttachmentSpec) -> str:
        """The card's IPv6 address; empty on a network that has none here."""
        if spec.is_local:
            if spec.subnet6:
                return self._allocate(spec, requested=attachment.address6, family="ip6")
            if attachment.address6:
                raise UserError(f"network {spec.name} has no IPv6: address {attachment.address6} cannot be had there")
        return attachment.address6 or "" if spec.subnet6 else ""

    def _allocate(self, spec: NetworkSpec, *, requested: str | None, family: Family = "ip") -> str:
        is_v4 = family == "ip"
        cards = [i for record in self._known.records.values() for i in record.interfaces if i.network_id == spec.id]
        used = {i.address if is_v4 else i.address6 for i in cards} - {""}
        used.update(address for address in spec.reserved if is_ipv6(address) is not is_v4)
        cursor = spec.id if is_v4 else f"{spec.id} {family}"
        address = next_address(
            spec.subnet if is_v4 else spec.subnet6,
            spec.gateway if is_v4 else spec.gateway6,
            used,
            (spec.ip_range if is_v4 else spec.ip_range6) or None,
            requested=requested,
            after=self._cursors.get(cursor),
            network=spec.name,
        )
        if requested is None:
            self._cursors[cursor] = address
            self._store.put_cursors(self._cursors)
        return address
