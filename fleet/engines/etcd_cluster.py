"""The membership of an etcd cluster that fleet keeps: who is in it, letting one in as a learner, promoting, removing.

etcd lets one learner in at a time, and refuses a change that the majority would not survive (``--strict-reconfig-check``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from fleet import errors
from fleet.clock import Clock
from fleet.engines.etcd_wire import EtcdTls, Gateway
from fleet.logs import get_logger

__all__ = ["ClusterMember", "EtcdCluster", "initial_cluster"]

log = get_logger("etcd-cluster")

_PROMOTE_S: Final = 60.0
_PAUSE_S: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterMember:
    """``name`` is empty for one that was let in and has not started yet; ``peer`` is host:port."""

    id: int
    name: str
    peer: str
    is_learner: bool


class EtcdCluster:
    """Asks through ``endpoint``; every method raises ``UnavailableError`` without a majority."""

    def __init__(self, endpoint: str, tls: EtcdTls, clock: Clock) -> None:
        self._gateway = Gateway([endpoint], tls=tls, timeout_s=5.0)
        self._clock = clock

    async def aclose(self) -> None:
        await self._gateway.close()

    async def members(self) -> list[ClusterMember]:
        """All of them."""
        answer = await self._gateway.call("/v3/cluster/member/list", {}, repeatable=True)
        return [_member(item) for item in answer.get("members", [])]

    async def add_learner(self, peer: str, *, name: str) -> None:
        """Let a member in that gets everything and has no vote; what is left of an earlier try is replaced.

        Raises ``UnavailableError`` while another learner is on its way in, or members are missing.
        """
        for member in await self.members():
            if member.peer == peer or member.name == name:
                await self.remove(member.id)
        await self._gateway.call(
            "/v3/cluster/member/add", {"peerURLs": [f"https://{peer}"], "isLearner": True}, repeatable=False
        )

    async def promote(self, peer: str) -> None:
        """Give the member at the address its vote once it has caught up; nothing if it has one. Raises ``NotFoundError`` when
        it is none, ``UnavailableError`` when it does not catch up in time."""
        deadline = self._clock.monotonic() + _PROMOTE_S
        while True:
            member = next((each for each in await self.members() if each.peer == peer), None)
            if member is None:
                raise errors.NotFoundError(f"there is no etcd member at {peer}")
            if not member.is_learner:
                return
            try:
                await self._gateway.call("/v3/cluster/member/promote", {"ID": str(member.id)}, repeatable=False)
            except errors.UnavailableError as cause:
                if self._clock.monotonic() > deadline:
                    raise errors.UnavailableError(
                        f"the etcd member at {peer} has not caught up after {_PROMOTE_S:g} s: {cause}",
                        retry_after_s=5.0,
                    ) from cause
                await self._clock.sleep(_PAUSE_S)
            else:
                log.info("etcd member votes", peer=peer)

    async def remove(self, member_id: int) -> None:
        """Its process ends by itself. Raises ``UnavailableError`` when the rest would have no majority."""
        await self._gateway.call("/v3/cluster/member/remove", {"ID": str(member_id)}, repeatable=False)
        log.info("etcd member removed", member=member_id)

    async def remove_named(self, name: str) -> None:
        """As ``remove``; nothing when there is none of the name."""
        for member in await self.members():
            if member.name == name:
                await self.remove(member.id)


def initial_cluster(members: Sequence[ClusterMember], *, name: str, peer: str) -> str:
    """etcd's flag for the member ``name`` at ``peer``: all that have started, and itself."""
    others = [f"{member.name}=https://{member.peer}" for member in members if member.name and member.peer != peer]
    return ",".join([*others, f"{name}=https://{peer}"])


def _member(item: dict[str, Any]) -> ClusterMember:
    urls = item.get("peerURLs") or [""]
    return ClusterMember(
        id=int(item["ID"]),
        name=str(item.get("name", "")),
        peer=str(urls[0]).removeprefix("https://"),
        is_learner=bool(item.get("isLearner", False)),
    )
