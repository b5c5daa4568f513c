"""Services: create, update, roll back, remove, list."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import msgspec

from fleet import errors
from fleet.api.http import Filters
from fleet.logs import request_id
from fleet.manager.control.context import Context, required_version
from fleet.manager.control.filters import any_prefix, has_labels, one_of
from fleet.manager.control.service_refs import check_ports, resolve
from fleet.manager.control.service_spec import check_service_spec, normal_spec
from fleet.model.autoscale import has_policy, keeping_replicas
from fleet.model.common import Version
from fleet.model.defaults import restart_condition, restart_delay, stop_grace
from fleet.model.ids import LoginId, ServiceId
from fleet.model.schedule import parse_schedule
from fleet.model.secret import Login
from fleet.model.service import EndpointSpec, JobStatus, RestartPolicy, Service, ServiceSpec, UpdateStatus
from fleet.model.task import Task, TaskState, is_runnable
from fleet.orchestrator.job import current_tasks
from fleet.orchestrator.schedule import schedule_of
from fleet.orchestrator.view import slot_key
from fleet.store import Transaction

__all__ = ["ServiceControl", "ServiceCounts", "makes_tasks_stale"]

FILTERS: Final = frozenset({"id", "name", "label", "mode", "runtime"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceCounts:
    """Docker's ``ServiceStatus``."""

    running: int
    desired: int
    completed: int = 0


class ServiceControl:
    """Specs come in as the user wrote them and are stored with names resolved to ids."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._store = context.store

    def find(self, text: str) -> Service:
        """By id, name or unique prefix of the id. Raises ``NotFoundError``, ``UserError`` if ambiguous."""
        return self._store.services.find(text)

    def list(self, filters: Filters | None = None) -> list[Service]:
        """Those that are not being removed. Filters: ``id``, ``name`` (both as prefixes), ``label``, ``mode``, ``runtime``."""
        wanted = filters or {}
        return [s for s in self._store.services.all() if not s.pending_delete and _fits(s, wanted)]

    def counts(self, service: Service) -> ServiceCounts:
        """How many tasks run and how many should (``?status=true``)."""
        tasks = self._store.tasks.by_service(service.id)
        wanted = [task for task in tasks if task.desired_state.rank <= TaskState.RUNNING.rank]
        running = sum(task.status.state is TaskState.RUNNING for task in wanted)
        if service.spec.is_job:
            return _job_counts(service, tasks)
        desired = len({task.node_id or task.id for task in wanted}) if service.spec.is_global else service.spec.replicas
        return ServiceCounts(running=running, desired=desired)

    async def create(self, spec: ServiceSpec, *, login: str = "") -> Service:
        """``login``: ``X-Registry-Auth`` to pull its image with on every node.

        Raises ``UserError``, ``UnsupportedError``, ``NotFoundError`` (network), ``ConflictError`` (name taken)."""
        context = self._context
        id_ = ServiceId(context.new_id())
        spec = normal_spec(spec)
        if not spec.name:
            spec = msgspec.structs.replace(spec, name=f"service-{id_[:10]}")
        check_service_spec(spec)

        kept = self._new_login(id_, login)
        spec = _with_login(spec, kept.id if kept else LoginId(""))

        def attempt() -> Transaction:
            resolved = resolve(self._store, spec)
            check_ports(self._store, resolved.spec)
            now = context.now()
            tx = Transaction() if kept is None else Transaction().create(kept)
            return resolved.require(
                tx.create(
                    Service(
                        id=id_,
                        created_at=now,
                        updated_at=now,
                        spec=resolved.spec,
                        job_status=_first_job_status(resolved.spec, now),
                        request=request_id.get(),
                    )
                )
            )

        await context.guarded(attempt)
        return self.find(id_)

    async def update(
        self,
        text: str,
        spec: ServiceSpec,
        *,
        version: int | None,
        rollback: bool = False,
        login: str = "",
        login_of_previous: bool = False,
    ) -> Service:
        """Replace the spec of the service as it was at ``version``; the spec before is kept for a rollback.

        ``rollback``: put the previous spec back instead, whatever ``spec`` says. A spec that changes nothing changes nothing.
        ``login``: as in ``create``; without one that of the present spec stays, or of the previous (``login_of_previous``).
        Raises ``OutOfSequenceError`` if the service changed since, else as ``create``.
        """
        read_at = required_version(version, what="service")
        service = self.find(text)
        if read_at.index <= service.spec_base_revision or read_at.index > self._store.revision:
            # The store knows best: it may be ahead of what is shown here, or the version stale.
            await self._store.commit(Transaction().require(msgspec.structs.replace(service, version=read_at)))
            service = self.find(text)
        if rollback:
            return await self._roll_back(service)
        wanted = normal_spec(spec)
        _check_change(service, wanted)
        check_service_spec(wanted)
        old = service.previous_spec if login_of_previous else service.spec
        login_id = old.task_template.registry_login if old else LoginId("")
        known = self._store.logins.get(login_id)
        kept = self._new_login(service.id, login) if known is None or known.header != login else None
        wanted = _with_login(wanted, kept.id if kept else login_id)
        resolved = resolve(self._store, wanted)
        check_ports(self._store, resolved.spec, service_id=service.id)
        if resolved.spec == service.spec:
            return service
        await self._write_spec(service, wanted, login=kept)
        return self.find(service.id)

    async def remove(self, text: str) -> None:
        """Gone for users at once, its name free; its tasks are stopped and then the object is deleted by the loops."""
        found = self.find(text)

        def attempt() -> Transaction:
            service = self.find(found.id)
            return Transaction().replace(
                msgspec.structs.replace(
                    service, pending_delete=True, request=request_id.get(), updated_at=self._context.now()
                )
            )

        await self._context.guarded(attempt)

    async def _roll_back(self, service: Service) -> Service:
        if service.previous_spec is None:
            raise errors.UserError(f"service {service.spec.name} does not have a previous spec")
        status = None  # a job's iterations are not watched: nothing would ever end the rollback
        if not service.previous_spec.is_job:
            status = UpdateStatus(
                state="rollback_started", started_at=self._context.now(), message="manually requested rollback"
            )
        await self._write_spec(service, keeping_replicas(service.previous_spec, service.spec), status=status)
        return self.find(service.id)

    def _new_login(self, service_id: ServiceId, header: str) -> Login | None:
        if not header:
            return None
        context = self._context
        id_ = LoginId(context.new_id())
        return Login(id=id_, created_at=context.now(), service_id=service_id, header=header)

    def _unused_logins(self, service: Service) -> tuple[Login, ...]:
        """Those that neither the service as it will be nor a task of it can pull with any more."""
        specs = [service.spec, *([service.previous_spec] if service.previous_spec else [])]
        used = {spec.task_template.registry_login for spec in specs}
        tasks = self._store.tasks.by_service(service.id)
        used |= {task.spec.registry_login for task in tasks if not task.status.state.is_terminal}
        logins = self._store.logins.all()
        return tuple(login for login in logins if login.service_id == service.id and login.id not in used)

    async def _write_spec(
        self, seen: Service, spec: ServiceSpec, *, status: UpdateStatus | None = None, login: Login | None = None
    ) -> None:
        """Unless another spec has been written since ``seen``. Loops may change the rest of the object, and the objects it
        refers to, so the attempt is made anew on what is there then."""

        def attempt() -> Transaction:
            service = self.find(seen.id)
            if service.spec_version != seen.spec_version:
                raise errors.OutOfSequenceError(
                    f"update out of sequence: service {service.spec.name} was updated since it was read"
                )
            resolved = resolve(self._store, spec)
            check_ports(self._store, resolved.spec, service_id=service.id)
            changed = msgspec.structs.replace(self._with_spec(service, resolved.spec), update_status=status)
            tx = Transaction().replace(changed)
            if login is not None:
                tx.create(login)
            for unused in self._unused_logins(changed):
                tx.delete(unused)
            return resolved.require(tx)

        await self._context.guarded(attempt)

    def _with_spec(self, service: Service, spec: ServiceSpec) -> Service:
        number = service.spec_version + 1
        job_status, now = service.job_status, self._context.now()
        if spec.is_job and spec.task_template.force_update > service.spec.task_template.force_update:
            iteration = Version(index=(service.job_iteration or Version()).index + 1)
            job_status = msgspec.structs.replace(job_status or JobStatus(), job_iteration=iteration, last_execution=now)
        if spec.is_job and (schedule := parse_schedule(spec.labels)) != schedule_of(service):
            status = job_status or JobStatus()
            began = status.last_execution or (now if schedule is None else None)  # without one it runs at once
            job_status = msgspec.structs.replace(
                status, scheduled=now, last_execution=began
            )  # what was due before is not
        return msgspec.structs.replace(
            service,
            spec=spec,
            previous_spec=service.spec,
            spec_version=number,
            task_spec_version=number if makes_tasks_stale(service.spec, spec) else service.task_spec_version,
            spec_base_revision=self._store.revision,
            update_status=None,
            job_status=job_status,
            autoscale=service.autoscale if has_policy(spec.labels) else None,
            request=request_id.get(),
            updated_at=now,
        )


def _first_job_status(spec: ServiceSpec, now: datetime) -> JobStatus | None:
    """A job runs at once, unless it has a schedule."""
    if not spec.is_job:
        return None
    return JobStatus(last_execution=now) if parse_schedule(spec.labels) is None else JobStatus(scheduled=now)


def _with_login(spec: ServiceSpec, login_id: LoginId) -> ServiceSpec:
    """Whatever the client sent in its place."""
    template = msgspec.structs.replace(spec.task_template, registry_login=login_id)
    return msgspec.structs.replace(spec, task_template=template)


def _job_counts(service: Service, tasks: Iterable[Task]) -> ServiceCounts:
    """Of the iteration in work. As many are *desired* as may run at a time; of a global job, one for each node served."""
    current = current_tasks(service, tasks)
    keys = {slot_key(task) for task in current}
    done = {slot_key(task) for task in current if task.status.state is TaskState.COMPLETE}
    return ServiceCounts(
        running=sum(is_runnable(task) and task.status.state is TaskState.RUNNING for task in current),
        desired=len(keys) if service.spec.mode.global_job is not None else service.spec.concurrency,
        completed=len(done),
    )


def _fits(service: Service, filters: Filters) -> bool:
    return (
        any_prefix(filters, "id", service.id)
        and any_prefix(filters, "name", service.spec.name)
        and has_labels(filters, "label", service.spec.labels)
        and one_of(filters, "mode", service.spec.mode_name)
        and one_of(filters, "runtime", "container")
    )


def _check_change(service: Service, wanted: ServiceSpec) -> None:
    """What an update may not change (SVC-02, ERR-08)."""
    if wanted.name and wanted.name != service.spec.name:
        raise errors.UnsupportedError("renaming services is not supported: create another and remove this one")
    if wanted.mode_name != service.spec.mode_name:
        raise errors.UnsupportedError("service mode change is not allowed: create another service and remove this one")


def makes_tasks_stale(before: ServiceSpec, after: ServiceSpec) -> bool:
    """Whether tasks made from ``before`` must be replaced (UPD-01, UPD-02).

    The task template, the networks and the endpoint make a task; replicas, labels of the service and update settings do
    not. Defaults count as what they stand for. For placement see the orchestrator: it keeps tasks whose node still fits.
    """
    return _essence(before) != _essence(after)


def _essence(spec: ServiceSpec) -> tuple[object, ...]:
    template = spec.task_template
    container = msgspec.structs.replace(
        template.container_spec,
        stop_grace_period_ns=int(stop_grace(template).total_seconds() * 1e9),
        init=bool(template.container_spec.init),
    )
    policy = template.restart_policy or RestartPolicy()
    restart = (restart_condition(template), restart_delay(template), policy.max_attempts, policy.window_ns)
    rest = msgspec.structs.replace(
        template, container_spec=container, restart_policy=None, networks=(), registry_login=LoginId("")
    )
    return rest, restart, spec.all_networks, spec.endpoint_spec or EndpointSpec()
