"""What must hold after each change, whatever the world does; each is a sentence when it does not."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from fleet.manager.leadership import LEADER_KEY, Leader
from fleet.manager.sealing_rotation import is_rotating, next_sealing_key
from fleet.model import wire
from fleet.model.cluster import SEALING_AUTHORITY, Authority
from fleet.model.node import NodeState
from fleet.model.service import Service
from fleet.model.task import Task, TaskState, is_runnable
from fleet.store.engine import Deleted, WatchBatch
from fleet.store.kinds import TYPE_OF, Kind, key_of
from fleet.store.sealing import AesSealer, key_digest
from simulation.host import FIRST_KEY

if TYPE_CHECKING:
    from simulation.host import Container, Host
    from simulation.world import World

__all__ = ["Checkers"]

_SETTLED_S = 25.0
"""A host that had no trouble for so long is known to the managers as it is."""


class Checkers:
    """``objects`` mirrors the truth, decoded."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.objects: dict[Kind, dict[str, Any]] = {kind: {} for kind in Kind}
        self.digest = hashlib.sha256()
        self._unready_at: dict[str, float] = {}
        self._failed: defaultdict[tuple[object, ...], set[str]] = defaultdict(set)
        self.created: Counter[str] = Counter()
        self._ever_start_first: set[str] = set()
        self._swapped: dict[tuple[str, int], str] = {}
        self.labels: defaultdict[str, set[str]] = defaultdict(set)
        """Config id -> every value that was ever durable."""
        self._openers = {key_digest(FIRST_KEY): AesSealer(FIRST_KEY)}
        self._sealed_with: dict[str, str] = {}
        """Key -> the name of what its value is sealed with."""

    # -- after each change of the state

    def look(self, batch: WatchBatch, author: str) -> None:
        self.digest.update(
            f"{batch.revision} {author} {[e.key for e in batch.events]} {self._world.loop.time():.6f}".encode()
        )
        touched: set[str] = set()
        for event in batch.events:
            kind = next((k for k in Kind if event.key.startswith(k.prefix)), None)
            if kind is None:
                continue
            id_ = event.key.removeprefix(kind.prefix)
            old = self.objects[kind].get(id_)
            if isinstance(event, Deleted):
                self.objects[kind].pop(id_, None)
                new = None
            else:
                new = self.objects[kind][id_] = wire.decode(self._opened(event.key, event.value), TYPE_OF[kind])
            if kind is Kind.TASK:
                if not _is_wish(old, new):
                    self._author(author, id_)
                self._task(old, new)
                touched.add((new or old).service_id)
            elif kind is Kind.NODE and new is not None and new.status.state is not NodeState.READY:
                self._unready_at[id_] = self._world.loop.time()
            elif kind is Kind.SERVICE and new is not None and _starts_first(new):
                self._ever_start_first.add(id_)
            elif kind is Kind.AUTHORITY and new is not None:
                self._learn_key(new)
            elif kind is Kind.CONFIG and new is not None:
                self.labels[id_].add(new.spec.labels.get("value", ""))
        for service_id in sorted(touched):
            self._slots(service_id)
        if touched or any(event.key.startswith(Kind.SERVICE.prefix) for event in batch.events):
            self._addresses()

    def _author(self, author: str, task_id: str) -> None:
        entry = self._world.truth.current.get(LEADER_KEY)
        leader = msgspec.json.decode(entry.value, type=Leader).node_id if entry else "nobody"
        if leader != f"node-{author}":
            self._world.fail(f"task {task_id} was written by {author} while {leader} leads")

    def _task(self, old: Task | None, new: Task | None) -> None:
        fail = self._world.fail
        if new is None:
            return
        if old is None:
            self.created[new.service_id] += 1
            return
        if new.status.state.rank < old.status.state.rank:
            fail(f"task {new.id} went back from {old.status.state} to {new.status.state}")
        if new.desired_state.rank < old.desired_state.rank:
            fail(f"task {new.id} is wanted {new.desired_state} after {old.desired_state}")
        if old.node_id and new.node_id != old.node_id:
            fail(f"task {new.id} moved from {old.node_id} to {new.node_id}")
        if new.status.state is TaskState.FAILED and old.status.state is not TaskState.FAILED:
            self._attempts(new)

    def _attempts(self, task: Task) -> None:
        """A restart policy's limit, over all leaders."""
        policy = task.spec.restart_policy
        if policy is None or not policy.max_attempts or task.spec.container_spec.image.partition(":")[0] != "crashing":
            return
        slot = [t for t in self.tasks_of(task.service_id) if (t.slot or t.node_id) == (task.slot or task.node_id)]
        if task.desired_state.rank > TaskState.RUNNING.rank or any(t.created_at > task.created_at for t in slot):
            return  # it was replaced already, for another reason, which costs no attempt
        failed = self._failed[task.service_id, task.slot or task.node_id, task.spec_version]
        failed.add(task.id)
        if len(failed) > policy.max_attempts + 1:
            self._world.fail(
                f"slot {task.slot} of {task.service_name}: {len(failed)} tasks failed, {policy.max_attempts} restarts allowed"
            )

    # -- what the state is sealed with

    def _opened(self, key: str, value: bytes) -> bytes:
        """Every manager can open it, now and after a restart."""
        name = next((name for name, opener in self._openers.items() if opener.is_sealed_with(name, value)), "")
        lacking = [host.name for host in self._world.hosts if host.is_manager and name not in host.sealing_names]
        if lacking:
            self._world.fail(f"{key} is sealed with {name or 'an unknown key'}, which {lacking} lack")
        self._sealed_with[key] = name
        return self._openers[name].unseal(key, value)

    def _learn_key(self, authority: Authority) -> None:
        if authority.sealing is not None and (key := next_sealing_key(authority.sealing)) is not None:
            self._openers[key_digest(key)] = AesSealer(key)

    def not_sealed_alike(self) -> str:
        """Why not: each rotation has come to its end, and nobody keeps a key that opens nothing."""
        authority = self.objects[Kind.AUTHORITY].get(SEALING_AUTHORITY)
        if is_rotating(authority):
            return "the sealing key is being rotated"
        names = {self._sealed_with[key_of(obj)] for objects in self.objects.values() for obj in objects.values()}
        kept = {host.sealing_names for host in self._world.hosts if host.is_manager}
        return "" if len(names) == 1 and kept == {tuple(names)} else f"sealed with {sorted(names)}, kept are {kept}"

    def tasks_of(self, service_id: str) -> Iterator[Task]:
        return (task for task in self.objects[Kind.TASK].values() if task.service_id == service_id)

    def _slots(self, service_id: str) -> None:
        owners = Counter(task.slot or task.node_id for task in self.tasks_of(service_id) if is_runnable(task))
        # An old task stays beside its successor across further updates, so once is for ever.
        allowed = 2 if service_id in self._ever_start_first else 1
        moving = {t.slot for t in self.tasks_of(service_id) if t.move is not None and t.move.data and is_runnable(t)}
        for slot, count in owners.items():
            if count > (2 if slot in moving else allowed):
                self._world.fail(f"slot {slot} of {service_id} has {count} owners")
                self._world._tell_situation()

    def _addresses(self) -> None:
        used: dict[tuple[str, str], str] = {}
        for service in self.objects[Kind.SERVICE].values():
            for vip in service.endpoint.virtual_ips:
                self._use(used, (vip.network_id, vip.addr.partition("/")[0]), f"service {service.id}")
        for task in self.objects[Kind.TASK].values():
            if not task.status.state.is_terminal:
                for attachment in task.network_attachments:
                    for address in filter(None, (attachment.address, attachment.address6)):
                        self._use(used, (attachment.network_id, address), f"task {task.id}")
        ports: dict[tuple[str, str], str] = {}
        for service in self.objects[Kind.SERVICE].values():
            for port in service.endpoint.ports:
                if port.publish_mode == "ingress" and port.published_port and not service.pending_delete:
                    self._use(ports, (port.protocol, str(port.published_port)), f"service {service.id}")

    def _use(self, used: dict[tuple[str, str], str], what: tuple[str, str], who: str) -> None:
        if what in used:
            self._world.fail(f"{what[1]} of {what[0]} belongs to {used[what]} and to {who}")
        used[what] = who

    # -- before a container starts

    def before_start(self, host: Host, container: Container) -> None:
        """No second container of a slot, as far as the managers could know."""
        task = container.task
        if task.moved_from is not None and host.fetched.get(task.id) != task.moved_from.task:
            self._world.fail(f"task {task.id} starts at {host.name} without the data of {task.moved_from.task}")
        service = self.objects[Kind.SERVICE].get(task.service_id)
        if service is None or service.id in self._ever_start_first:
            return
        for other_host in self._world.hosts:
            for other in other_host.running().values():
                same = (other.task.service_id, other.task.slot) == (task.service_id, task.slot)
                same = same and (task.slot != 0 or other_host is host)
                if same and other.task.id != task.id and self.is_settled(other_host) and self.is_settled(host):
                    self._world.fail(
                        f"slot {task.slot} of {task.service_name}: {task.id} starts at {host.name} while {other.task.id} runs "
                        f"at {other_host.name}"
                    )

    def is_settled(self, host: Host) -> bool:
        quiet_since = max(self._unready_at.get(host.node_id, 0.0), self._world.trouble.get(host.name, 0.0))
        return self._world.loop.time() - quiet_since > _SETTLED_S

    # -- what clients were told

    def swapped(self, config_id: str, version: int, value: str) -> None:
        """An update of that version was acknowledged."""
        if value not in self.labels[config_id]:
            self._world.fail(f"config {config_id}: the acknowledged value {value} was never durable")
        earlier = self._swapped.setdefault((config_id, version), value)
        if earlier != value:
            self._world.fail(f"config {config_id}: {earlier} and {value} were both acknowledged on version {version}")


def _is_wish(old: Task | None, new: Task | None) -> bool:
    """A person's wish that a task moves with its data is all that any manager may write on a task."""
    if old is None or new is None or new.move is None or not new.move.data or new.move.successor or new.move.ended:
        return False
    wished = msgspec.structs.replace(old, move=new.move, updated_at=new.updated_at, version=new.version)
    return wished == new and not old.is_moving


def _starts_first(service: Service) -> bool:
    configs = [service.spec.update_config, service.spec.rollback_config]
    if service.previous_spec is not None:
        configs += [service.previous_spec.update_config, service.previous_spec.rollback_config]
    return any(config is not None and config.order == "start-first" for config in configs)
