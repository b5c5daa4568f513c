"""/services"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from fastapi import APIRouter, Request, Response

from fleet import errors
from fleet.api.http import json_response, parse_bool
from fleet.api.render import Encoded, Json, service_json, with_status
from fleet.images.registry_auth import parse_registry_auth
from fleet.manager.control.autoscale import AutoscaleReport, overrules
from fleet.manager.control.placement import PlacementReport
from fleet.manager.control.services import FILTERS, ServiceCounts
from fleet.manager.http.request import Control, filters_of, lookup, read_json, version_of
from fleet.model import wire
from fleet.model.service import Service, ServiceSpec
from fleet.model.wire import to_builtins

__all__ = ["routes"]

_UNSUPPORTED: Final = (
    ("TaskTemplate", "PluginSpec"),
    ("TaskTemplate", "NetworkAttachmentSpec"),
    ("TaskTemplate", "ContainerSpec", "Privileges", "CredentialSpec"),
    ("TaskTemplate", "ContainerSpec", "Privileges", "SELinuxContext"),
)
"""Parts of Docker's spec that the model does not know, and that must not vanish without a word."""

_UNSUPPORTED_MOUNT: Final = ("ClusterOptions", "ImageOptions")

_AUTH_FROM: Final = {"": False, "spec": False, "previous-spec": True}


def routes(control: Control) -> APIRouter:
    """List, create, inspect, update, remove."""
    router = APIRouter()
    encoded = Encoded()

    def render(service: Service, request: Request) -> bytes:
        insert_defaults = parse_bool(request.query_params.get("insertDefaults"))
        return encoded.get(
            f"{service.id} {insert_defaults}",
            (service,),
            lambda: service_json(service, insert_defaults=insert_defaults),
        )

    @router.get("/services")
    async def list_services(request: Request) -> Response:
        api = control().services
        found = api.list(filters_of(request, FILTERS))
        if parse_bool(request.query_params.get("status")):
            return json_response(
                Encoded.array(with_status(render(item, request), _status(api.counts(item))) for item in found)
            )
        return json_response(Encoded.array(render(item, request) for item in found))

    @router.post("/services/create")
    async def create_service(request: Request) -> Response:
        spec = _spec_of(await _read_raw(request))
        service = await control().services.create(spec, login=_login(request))
        return json_response({"ID": service.id}, status=201)

    @router.get("/services/{id_}")
    async def inspect_service(id_: str, request: Request) -> Response:
        return json_response(render(control().services.find(id_), request))

    @router.get("/fleet/v1/services/{id_}/placement")
    async def explain_placement(id_: str) -> Response:
        return json_response(
            {
                **_placement_json(control().placement.explain(id_)),
                "Autoscale": _autoscale_json(control().autoscale.report(id_)),
            }
        )

    @router.post("/services/{id_}/update")
    async def update_service(id_: str, request: Request) -> Response:
        raw = await _read_raw(request)
        spec = _spec_of(raw)
        login = _login(request)
        word = request.query_params.get("registryAuthFrom", "")
        if word not in _AUTH_FROM:
            raise errors.UserError(f"invalid registryAuthFrom {word!r}: only 'spec' and 'previous-spec' are known")
        version, is_rollback = version_of(request), _is_rollback(request)
        before = control().services.find(id_).spec
        spec = _with_own(raw, spec, before)
        service = await control().services.update(
            id_, spec, version=version, rollback=is_rollback,
            login=login, login_of_previous=_AUTH_FROM[word],
        )  # fmt: skip
        warning = "" if is_rollback else overrules(before, service.spec)
        return json_response({"Warnings": [warning] if warning else None})

    @router.delete("/services/{id_}")
    async def remove_service(id_: str) -> Response:
        await control().services.remove(id_)
        return Response(status_code=200)

    return router


def _status(counts: ServiceCounts) -> tuple[int, int, int]:
    return counts.running, counts.desired, counts.completed


async def _read_raw(request: Request) -> Any:
    raw = await read_json(request, what="service spec")
    _refuse_unknown(raw)
    return raw


def _spec_of(raw: Any) -> ServiceSpec:
    return wire.parse_builtins(raw, ServiceSpec, what="service spec")


def _with_own(raw: Any, spec: ServiceSpec, before: ServiceSpec) -> ServiceSpec:
    """Docker's clients send back what they read without the fields they do not know: fleet's own stay as they were."""
    kept = {}
    for name, key in (("update_config", "UpdateConfig"), ("rollback_config", "RollbackConfig")):
        config, old = getattr(spec, name), getattr(before, name)
        if config is None or old is None or lookup(raw, key, "ProgressDeadline") is not None:
            continue
        kept[name] = msgspec.structs.replace(config, progress_deadline_ns=old.progress_deadline_ns)
    return msgspec.structs.replace(spec, **kept) if kept else spec


def _refuse_unknown(raw: Any) -> None:
    for path in _UNSUPPORTED:
        if _says_something(lookup(raw, *path)):
            raise errors.UnsupportedError(f"service spec: {'.'.join(path)} is not supported")
    mounts = lookup(raw, "TaskTemplate", "ContainerSpec", "Mounts")
    for mount in mounts if isinstance(mounts, list) else ():
        for word in _UNSUPPORTED_MOUNT:
            if _says_something(lookup(mount, word)):
                raise errors.UnsupportedError(f"service spec: Mounts.{word} is not supported")


def _says_something(value: Any) -> bool:
    """Neither absent nor made of empty values only (clients send ``{"Disable": false, "User": ""}``)."""
    if isinstance(value, dict):
        return any(_says_something(item) for item in value.values())
    return bool(value)


def _is_rollback(request: Request) -> bool:
    word = request.query_params.get("rollback", "")
    if word not in ("", "previous", "none"):
        raise errors.UserError(f"invalid rollback option {word!r}: only 'previous' is known")
    return word == "previous"


def _login(request: Request) -> str:
    """``X-Registry-Auth`` as it came; empty for clients without a login, which send nothing, or ``{}`` in base64. Raises
    ``UserError`` if nobody could read it.
    """
    header = request.headers.get("x-registry-auth", "")
    return header if parse_registry_auth(header) is not None else ""


def _autoscale_json(report: AutoscaleReport) -> Json | None:
    if not report.policy:
        return None
    status = report.status
    return {
        "Policy": report.policy,
        "Now": report.now,
        "Held": status.held,
        "HeldSince": to_builtins(status.held_since) if status.held else None,
        "Scalings": to_builtins(status.scalings),
    }


def _placement_json(report: PlacementReport) -> Json:
    return {
        "ServiceID": report.service.id,
        "Strategy": report.strategy,
        "Chosen": report.chosen or "",
        "Reason": report.reason,
        "Preempted": [
            {
                "Name": f"{task.service_name}.{task.slot or task.id}",
                "NodeID": task.node_id,
                "Service": task.preempted.service,
                "Since": to_builtins(task.preempted.since),
                "HasEnded": task.status.state.is_terminal,
            }
            for task in report.preempted
            if task.preempted is not None
        ],
        "Preempts": {
            "NodeID": report.preemption.node_id,
            "Names": [f"{victim.service_name}.{victim.slot or victim.id}" for victim in report.preemption.victims],
        }
        if report.preemption is not None
        else None,
        "Quotas": [budget.explain() for budget in report.quotas],
        "Nodes": [
            {
                "ID": verdict.view.node.id,
                "Hostname": verdict.view.node.description.hostname,
                "Reasons": verdict.reasons,
                "Notes": verdict.notes,
                "Score": verdict.score,
                "Failures": verdict.failures,
                "ServiceTasks": verdict.service_tasks,
                "Tasks": verdict.view.tasks_total,
                "ReservedPermille": verdict.view.reserved_permille(),
            }
            for verdict in report.nodes
        ],
        "Waiting": [{"ID": task.id, "Slot": task.slot, "Err": task.status.err} for task in report.waiting],
    }
