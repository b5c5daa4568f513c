"""/fleet/v1/rebalance"""

from __future__ import annotations

from fastapi import APIRouter, Response

from fleet.api.http import json_response
from fleet.api.render import Json
from fleet.manager.control.rebalance import RebalanceReport
from fleet.manager.http.request import Control
from fleet.model.task import Task
from fleet.model.wire import to_builtins

__all__ = ["routes"]


def routes(control: Control) -> APIRouter:
    """The plan and what is under way; asking for it; taking that back."""
    router = APIRouter()

    @router.get("/fleet/v1/rebalance")
    async def show() -> Response:
        return json_response(_report_json(control().rebalance.report()))

    @router.post("/fleet/v1/rebalance")
    async def request() -> Response:
        api = control().rebalance
        await api.request()
        return json_response(_report_json(api.report()), status=202)

    @router.delete("/fleet/v1/rebalance")
    async def cancel() -> Response:
        await control().rebalance.cancel()
        return Response(status_code=204)

    return router


def _report_json(report: RebalanceReport) -> Json:
    plan = report.plan
    return {
        "Request": to_builtins(report.request) if report.request is not None else None,
        "Moves": [{**_task(each.task), "To": each.target, "Reason": each.reason} for each in plan.moves],
        "Stays": plan.stays,
        "UnderWay": [{**_task(task), "To": _target(task)} for task in report.under_way],
        "Moved": [{**_task(task), "To": task.node_id} for task in report.moved],
        "GivenUp": [
            {**_task(task), "To": task.move.to, "Reason": task.move.ended, "Since": to_builtins(task.move.since)}
            for task in report.given_up
            if task.move is not None
        ],
    }


def _task(task: Task) -> Json:
    """``From`` is empty for a task that is made to take another's place."""
    return {
        "ID": task.id,
        "Service": task.service_name,
        "Slot": task.slot,
        "From": task.node_id if task.move is not None or not task.toward else "",
        "State": task.status.state.value,
    }


def _target(task: Task) -> str:
    return task.move.to if task.move is not None else task.toward
