"""What init and join ask for, and a joining host's side of admission: prove the root, then show the token."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, TypeVar

import httpx
import msgspec

from fleet import errors
from fleet.daemon.addresses import CLUSTER_PORT, split_address
from fleet.identity.tls import insecure_context, pinned_context
from fleet.manager.admission import JoinAnswer, JoinRequest
from fleet.model.cluster import SwarmSpec
from fleet.model.node import Availability

__all__ = [
    "JOIN_TIMEOUT_S",
    "InitRequest",
    "JoinSwarmRequest",
    "KitRequest",
    "ManagerKit",
    "MemberKit",
    "UnlockRequest",
    "checked",
    "ask_managers",
    "parse_availability",
    "request_to_join",
]

T = TypeVar("T")

JOIN_TIMEOUT_S: Final = 20.0
_ANSWER_MAX: Final = 64 * 1024
_ROTATION_TRIES: Final = 8
_ROTATION_PAUSE_S: Final = 0.5


class InitRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``POST /swarm/init``, as Docker's clients send it."""

    listen_addr: str = msgspec.field(default="", name="ListenAddr")
    advertise_addr: str = msgspec.field(default="", name="AdvertiseAddr")
    data_path_addr: str = msgspec.field(default="", name="DataPathAddr")
    data_path_port: int = msgspec.field(default=0, name="DataPathPort")
    default_addr_pool: tuple[str, ...] = msgspec.field(default=(), name="DefaultAddrPool")
    subnet_size: int = msgspec.field(default=0, name="SubnetSize")
    force_new_cluster: bool = msgspec.field(default=False, name="ForceNewCluster")
    availability: str = msgspec.field(default="", name="Availability")
    spec: SwarmSpec = msgspec.field(default=SwarmSpec(), name="Spec")


class JoinSwarmRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``POST /swarm/join``. ``labels`` is fleet's own: node labels from the first moment on."""

    listen_addr: str = msgspec.field(default="", name="ListenAddr")
    advertise_addr: str = msgspec.field(default="", name="AdvertiseAddr")
    data_path_addr: str = msgspec.field(default="", name="DataPathAddr")
    remote_addrs: tuple[str, ...] = msgspec.field(default=(), name="RemoteAddrs")
    join_token: str = msgspec.field(default="", name="JoinToken")
    availability: str = msgspec.field(default="", name="Availability")
    labels: dict[str, str] = msgspec.field(default_factory=dict, name="Labels")


class UnlockRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``POST /swarm/unlock``."""

    unlock_key: str = msgspec.field(default="", name="UnlockKey")

    def __repr__(self) -> str:
        return "UnlockRequest(<key>)"


class KitRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A new manager's signing request for its etcd member, and host:port where the others will reach that."""

    csr_pem: str
    peer: str


class MemberKit(msgspec.Struct, frozen=True, kw_only=True):
    """What its etcd member starts with: PEM of the state authority and of the certificate, etcd's flags."""

    ca_pem: str
    certificate_pem: str
    initial_cluster: str
    token: str


class ManagerKit(msgspec.Struct, frozen=True, kw_only=True):
    """What a manager has that others have not: the key that its state is sealed with; and where fleet keeps the etcd, its member
    of that."""

    sealing_key: bytes
    member: MemberKit | None = None

    def __repr__(self) -> str:
        return "ManagerKit(<key>)"


def parse_availability(text: str) -> Availability:
    try:
        return Availability(text or "active")
    except ValueError as cause:
        raise errors.UserError(f"invalid availability {text!r}, only active, pause and drain are supported") from cause


async def ask_managers(
    managers: Iterable[str],
    ask: Callable[[str], Awaitable[T]],
    *,
    failure: str,
    on: tuple[type[Exception], ...] = (),
) -> T:
    """What the first manager answers that can be reached. ``on``: errors besides those of the network that the next manager
    is asked after. Raises ``UnavailableError``: the words of ``failure`` and what became of each."""
    caught: tuple[type[Exception], ...] = (httpx.HTTPError, OSError, *on)
    problems = []
    for manager in managers:
        try:
            return await ask(manager)
        except caught as cause:
            problems.append(f"{manager}: {cause or type(cause).__name__}")
    raise errors.UnavailableError(f"{failure}: {'; '.join(problems) or 'no manager is known'}", retry_after_s=1.0)


def checked(answer: httpx.Response) -> httpx.Response:
    """The answer, if it is a good one of a likely size. Raises ``UnavailableError`` with what the daemon said."""
    if answer.status_code >= 400:
        raise errors.UnavailableError(_message(answer))
    if len(answer.content) > _ANSWER_MAX:
        raise errors.UnavailableError(f"an answer of {len(answer.content)} bytes, at most {_ANSWER_MAX}")
    return answer


async def request_to_join(remote: str, wish: JoinRequest, check: Callable[[str], None]) -> JoinAnswer:
    """Fetch the root, prove it by the token's digest, and only then show the token, to a holder of that root."""
    host, port = split_address(remote, default_port=CLUSTER_PORT, what="manager address")
    base = f"https://{host}:{port}/cluster/v1"
    async with httpx.AsyncClient(verify=insecure_context(), timeout=JOIN_TIMEOUT_S, trust_env=False) as client:
        answer = await client.get(f"{base}/root")
        if answer.status_code != 200 or len(answer.content) > _ANSWER_MAX:
            raise errors.UnavailableError(f"{remote} is not a manager: {_message(answer)}")
    check(answer.text)
    async with httpx.AsyncClient(verify=pinned_context(answer.text), timeout=JOIN_TIMEOUT_S, trust_env=False) as client:
        joined = await _post_patiently(client, f"{base}/join", msgspec.json.encode(wish))
    if joined.status_code >= 400:
        kinds = {
            400: errors.UserError,
            401: errors.UnauthorizedError,
            403: errors.ForbiddenError,
            501: errors.UnsupportedError,
        }
        raise kinds.get(joined.status_code, errors.UnavailableError)(_message(joined))
    try:
        return msgspec.json.decode(joined.content, type=JoinAnswer)
    except msgspec.DecodeError as cause:
        raise errors.UnavailableError(f"{remote}: answer to the join request does not decode: {cause}") from cause


async def _post_patiently(client: httpx.AsyncClient, url: str, body: bytes) -> httpx.Response:
    """While the root is being rotated, join tokens name the new root a moment before the manager's certificate is of it."""
    for _ in range(_ROTATION_TRIES - 1):
        try:
            return await client.post(url, content=body)
        except httpx.ConnectError as cause:
            if "CERTIFICATE_VERIFY_FAILED" not in str(cause):
                raise
            await asyncio.sleep(_ROTATION_PAUSE_S)
    return await client.post(url, content=body)


def _message(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {answer.status_code}"
