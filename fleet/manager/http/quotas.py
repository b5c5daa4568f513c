"""/fleet/v1/quotas"""

from __future__ import annotations

from fastapi import APIRouter, Response

from fleet.api.http import json_response
from fleet.api.render import Json
from fleet.manager.control.quotas import QuotaReport
from fleet.manager.http.request import Control

__all__ = ["routes"]


def routes(control: Control) -> APIRouter:
    """All quotas with what is used of them; they are set as labels of the swarm."""
    router = APIRouter()

    @router.get("/fleet/v1/quotas")
    async def list_quotas() -> Response:
        return json_response([_report_json(report) for report in control().quotas.list()])

    return router


def _report_json(report: QuotaReport) -> Json:
    """A limit that is not set is null."""
    budget, quota = report.budget, report.budget.quota
    return {
        "Name": quota.name,
        "Label": quota.label,
        "Value": quota.value,
        "Services": report.services,
        "Waiting": report.waiting,
        "Used": {"Tasks": budget.tasks, "NanoCPUs": budget.nano_cpus, "MemoryBytes": budget.memory_bytes},
        "Limits": {"Tasks": quota.tasks, "NanoCPUs": quota.nano_cpus, "MemoryBytes": quota.memory_bytes},
    }
