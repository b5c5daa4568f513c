"""``fleet node rebalance``: what would be moved, having it moved, watching it."""

from __future__ import annotations

from typing import Any, Final

import click

from fleet import errors
from fleet.api.client import EngineError
from fleet.cli import clock
from fleet.cli.app import App, pass_app
from fleet.cli.render import echo, print_rows

__all__ = ["rebalance"]

Json = dict[str, Any]

PATH: Final = "/fleet/v1/rebalance"
POLL_S: Final = 0.25
UNREACHABLE_S: Final = 30.0
"""How long no manager may answer while the command waits."""
COLUMNS: Final = (("Task", "TASK"), ("From", "FROM"), ("To", "TO"), ("Why", "WHY"))


@click.command()
@click.option("--dry-run", is_flag=True, help="Show what would be moved, and why; move nothing.")
@click.option("--cancel", is_flag=True, help="Begin no further moves.")
@click.option("-d", "--detach", is_flag=True, help="Ask for it and do not wait.")
@click.option(
    "-f",
    "--format",
    "fmt",
    metavar="FORMAT",
    help="With --dry-run: 'table', 'json', 'yaml' or a Go template for each move.",
)
@pass_app
def rebalance(app: App, *, dry_run: bool, cancel: bool, detach: bool, fmt: str | None) -> int:
    """Move running tasks to nodes where they lie better, some at a time."""
    if dry_run + cancel + detach > 1:
        raise click.UsageError("--dry-run, --cancel and --detach cannot be combined")
    if fmt and not dry_run:
        raise click.UsageError("--format needs --dry-run")
    if cancel:
        app.client.delete(PATH)
        echo("No further tasks will be moved.")
        return 0
    if dry_run:
        _show_plan(app, app.client.get(PATH), fmt)
        return 0
    report = app.client.post(PATH, {})
    if detach:
        echo(f"Rebalancing: {len(report['Moves']) + len(_leaving(report))} tasks to move.")
        return 0
    return _wait(app, report)


def _show_plan(app: App, report: Json, fmt: str | None) -> None:
    names = _node_names(app)
    rows = [
        {
            "ID": each["ID"],
            "Task": f"{each['Service']}.{each['Slot']}",
            "From": names.get(each["From"], each["From"]),
            "To": names.get(each["To"], each["To"]),
            "Why": each["Reason"],
        }
        for each in report["Moves"]
    ]
    if rows or fmt not in (None, "table"):
        print_rows(rows, columns=COLUMNS, fmt=fmt, quiet=False)
    else:
        echo("Nothing to move.")
    if fmt in (None, "table"):
        for service, reason in sorted(report["Stays"].items()):
            echo(f"{service} stays: {reason}")


def _wait(app: App, report: Json) -> int:
    """Until the request came to its end. An interrupt ends the watching, not the moving."""
    asked_at = report["Request"]["RequestedAt"]
    names = _node_names(app)
    told: set[tuple[str, str]] = set()
    silent_s = 0.0
    while True:
        given_up = [each for each in report["GivenUp"] if each["Since"] >= asked_at]
        for event, found in (("leaves", _leaving(report)), ("runs", report["Moved"]), ("stays", given_up)):
            for each in found:
                if (event, each["ID"]) not in told:
                    told.add((event, each["ID"]))
                    echo(_sentence(event, each, names))
        request = report["Request"]
        if request.get("FinishedAt") and not report["UnderWay"]:
            return _tell_end(report, request, given_up=len(given_up))
        clock.sleep(POLL_S)
        try:
            report, silent_s = app.client.get(PATH), 0.0
        except (EngineError, errors.UnavailableError):
            silent_s += POLL_S
            if silent_s > UNREACHABLE_S:
                raise


def _sentence(event: str, each: Json, names: dict[str, str]) -> str:
    task = f"{each['Service']}.{each['Slot']}"
    here, there = names.get(each["From"], each["From"]), names.get(each["To"], each["To"])
    match event:
        case "leaves":
            return f"{task} leaves {here} for {there}"
        case "runs":
            return f"{task} runs on {there}"
        case _:
            return f"{task} stays on {here}: {each['Reason']}"


def _tell_end(report: Json, request: Json, *, given_up: int) -> int:
    for service, reason in sorted(report["Stays"].items()):
        echo(f"{service} stays: {reason}")
    moved = len(report["Moved"])
    stayed = f", {given_up} stayed" if given_up else ""
    echo(f"{moved} task{'' if moved == 1 else 's'} moved{stayed}; {request.get('Outcome') or 'done'}.")
    return 1 if given_up or request.get("Outcome") == "cancelled" else 0


def _leaving(report: Json) -> list[Json]:
    return [each for each in report["UnderWay"] if each["From"]]


def _node_names(app: App) -> dict[str, str]:
    nodes = app.client.get("/nodes") or []
    return {node["ID"]: (node.get("Description") or {}).get("Hostname") or node["ID"] for node in nodes}
