"""``fleet job``: work that ends, once or at set times. Jobs are services in a job mode; schedules are labels of theirs."""

from __future__ import annotations

import copy
import secrets
from typing import Any, Final

import click

from fleet import errors
from fleet.cli import clock
from fleet.cli.app import App, part, pass_app
from fleet.cli.render import echo, print_rows, print_warnings
from fleet.cli.service_spec import mode_name
from fleet.cli.service_update import inherited, post_update
from fleet.cli.tasks import has_ended, state_of

Json = dict[str, Any]

CRON: Final = "fleet.schedule.cron"
_SUSPENDED: Final = "fleet.schedule.suspended"
_COLUMNS: Final = (
    ("Name", "NAME"),
    ("Schedule", "SCHEDULE"),
    ("Next", "NEXT RUN"),
    ("Last", "LAST RUN"),
    ("Outcome", "OUTCOME"),
    ("Done", "DONE"),
)
_RUNS: Final = (("Scheduled", "DUE"), ("Started", "STARTED"), ("Outcome", "OUTCOME"), ("Reason", "REASON"))


@click.group()
def job() -> None:
    """Jobs: work that ends, once or at set times."""


def _is_job(spec: Json) -> bool:
    mode = spec.get("Mode") or {}
    return mode.get("ReplicatedJob") is not None or mode.get("GlobalJob") is not None


def _check_job(spec: Json) -> None:
    if not _is_job(spec):
        raise errors.UserError(f"service {spec.get('Name')} is {mode_name(spec)}, not a job")


def _job(app: App, name: str) -> Json:
    found: Json = app.client.get(f"/services/{part(name)}", insertDefaults=False)
    _check_job(found["Spec"])
    return found


@job.command()
@click.option("--format", "fmt", metavar="FORMAT", help="'table', 'json', 'yaml' or a Go template for each job.")
@click.option("-q", "--quiet", is_flag=True, help="Only IDs.")
@pass_app
def ls(app: App, *, fmt: str | None, quiet: bool) -> None:
    """List jobs: when they run next, and how the last run went."""
    found = [each for each in app.client.get("/services", status=True) or [] if _is_job(each["Spec"])]
    rows = [_row(each) for each in sorted(found, key=lambda each: str(each["Spec"]["Name"]))]
    print_rows(rows, columns=_COLUMNS, fmt=fmt, quiet=quiet)


def _row(service: Json) -> Json:
    spec, status = service["Spec"], service.get("JobStatus") or {}
    labels = spec.get("Labels") or {}
    counts = service.get("ServiceStatus") or {}
    total = ((spec.get("Mode") or {}).get("ReplicatedJob") or {}).get("TotalCompletions")
    done, wanted = counts.get("CompletedTasks", 0), total if total is not None else counts.get("DesiredTasks", 0)
    zone = labels.get("fleet.schedule.timezone", "")
    last = status.get("LastExecution")
    if not last:
        outcome = ""
    elif wanted and done >= wanted:
        outcome = "succeeded"
    else:
        outcome = "running" if counts.get("RunningTasks") else "not ended"
    return {
        "ID": service["ID"],
        "Name": spec["Name"],
        "Schedule": " ".join(filter(None, (labels.get(CRON, ""), zone))),
        "Next": _next(labels),
        "Last": clock.ago(last) or "never",
        "Outcome": outcome,
        "Done": f"{done}/{wanted}" if last else "",
    }


def _next(labels: dict[str, str]) -> str:
    from datetime import UTC, datetime

    from fleet.model.schedule import parse_schedule

    try:
        schedule = parse_schedule(labels)
    except errors.UserError:
        return "unknown"
    if schedule is None:
        return ""
    if schedule.is_suspended:
        return "suspended"
    instant = schedule.next(datetime.now(UTC))
    return instant.strftime("%Y-%m-%d %H:%M:%S UTC") if instant else "never"


@job.command()
@click.option("--format", "fmt", metavar="FORMAT", help="'table', 'json', 'yaml' or a Go template for each run.")
@click.argument("name", metavar="JOB")
@pass_app
def history(app: App, *, name: str, fmt: str | None) -> None:
    """Show what became of the last times a job was due."""
    runs = (_job(app, name).get("JobStatus") or {}).get("Runs") or []
    rows = [
        {
            "ID": str(run.get("Iteration", "")),
            "Scheduled": run["Scheduled"],
            "Started": run.get("StartedAt") or "",
            "Outcome": run["Outcome"],
            "Reason": run.get("Reason", ""),
        }
        for run in reversed(runs)
    ]
    print_rows(rows, columns=_RUNS, fmt=fmt)


@job.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--from", "template", metavar="JOB", help="Run once what this job runs, whatever its schedule.")
@click.option("--name", default="", metavar="NAME", help="Name of the job (default: made up).")
@click.option("-e", "--env", multiple=True, metavar="NAME=VALUE", help="Environment variable; over those of --from.")
@click.option(
    "-n", "--completions", type=click.IntRange(1, 100_000), default=1, help="Tasks that are to end well (default 1)."
)
@click.option("--concurrent", type=click.IntRange(1, 100_000), default=None, help="Tasks at a time (default: all).")
@click.option("--rm", "removes", is_flag=True, help="Remove the job when it has ended.")
@click.option("-d", "--detach", is_flag=True, help="Do not wait until it has ended.")
@click.option("--timeout", type=click.FloatRange(min=0.001), default=None, metavar="SECONDS", help="Give up waiting.")
@click.argument("words", metavar="IMAGE [COMMAND [ARG]...]", nargs=-1, type=click.UNPROCESSED)
@pass_app
def run(app: App, *, words: tuple[str, ...], template: str | None, removes: bool, detach: bool, **given: Any) -> int:
    """Run a job once, wait for it and print what it says; ends with 0 if it ended well.

    With --from JOB the words are arguments that replace those of the job.
    """
    if template is None and not words:
        raise errors.UserError("an image is needed, or --from JOB")
    if removes and detach:
        raise errors.UserError("--rm and --detach cannot be combined: nobody would be there to remove it")
    spec = _spec_from(app, template, words) if template else _new_spec(app, words)
    container = spec["TaskTemplate"]["ContainerSpec"]
    own = inherited(given["env"], app.environment)
    names = {each.partition("=")[0] for each in own}
    container["Env"] = [*(each for each in container.get("Env") or () if each.partition("=")[0] not in names), *own]
    spec["Name"] = given["name"] or f"{template or 'job'}-{secrets.token_hex(4)}"
    spec["Mode"] = {
        "ReplicatedJob": {
            "TotalCompletions": given["completions"],
            "MaxConcurrent": given["concurrent"] or given["completions"],
        }
    }
    answer = app.client.post("/services/create", spec)
    print_warnings(answer)
    if detach:
        echo(spec["Name"])
        return 0
    service_id = str(answer["ID"])
    try:
        return _wait_and_print(
            app, service_id, spec["Name"], completions=given["completions"], timeout_s=given["timeout"]
        )
    finally:
        if removes:
            app.client.delete(f"/services/{service_id}")


def _new_spec(app: App, words: tuple[str, ...]) -> Json:
    from fleet.cli.pinning import pinned

    container: Json = {"Image": pinned(app, words[0], headers={})}
    if words[1:]:
        container["Args"] = list(words[1:])
    return {"TaskTemplate": {"ContainerSpec": container, "RestartPolicy": {"Condition": "none"}}}


def _spec_from(app: App, template: str, words: tuple[str, ...]) -> Json:
    found = _job(app, template)["Spec"]
    spec: Json = {"TaskTemplate": copy.deepcopy(found["TaskTemplate"])}
    labels = found.get("Labels") or {}
    spec["Labels"] = {key: value for key, value in labels.items() if not key.startswith("fleet.schedule.")}
    spec["Labels"]["fleet.job.from"] = template
    if found.get("EndpointSpec"):
        spec["EndpointSpec"] = {key: value for key, value in found["EndpointSpec"].items() if key != "Ports"}
    if words:
        spec["TaskTemplate"]["ContainerSpec"]["Args"] = list(words)
    return spec


_POLL_S: Final = 0.2


def _wait_and_print(app: App, service_id: str, name: str, *, completions: int, timeout_s: float | None) -> int:
    from fleet.cli.logs import service_logs

    deadline = None if timeout_s is None else clock.monotonic() + timeout_s
    told: set[str] = set()
    while True:
        tasks = app.client.get("/tasks", filters={"service": [service_id]}) or []
        done = sum(state_of(task) == "complete" for task in tasks)
        waiting = [task for task in tasks if not has_ended(task)]
        if done >= completions or (tasks and not waiting and len(tasks) >= completions):
            break
        for task in waiting:
            why = str((task.get("Status") or {}).get("Err") or "")
            if why and why not in told:
                told.add(why)
                click.echo(f"{name}: {why}", err=True)
        if deadline is not None and clock.monotonic() > deadline:
            raise errors.ConflictError(f"job {name} has not ended in time: {done} of {completions} tasks ended well")
        clock.sleep(_POLL_S)
    options = {"follow": False, "since": None, "tail": "all", "timestamps": False, "details": False}
    options |= {"no_resolve": False, "no_task_ids": False, "no_trunc": False, "raw": True}
    service_logs(app, service_id, **options)
    if done >= completions:
        return 0
    failed = [task for task in tasks if state_of(task) != "complete"]
    last = max(failed, key=lambda task: str(task["Status"].get("Timestamp", "")))
    click.echo(
        f"Error: job {name}: {done} of {completions} tasks ended well: {last['Status'].get('Err') or 'it was stopped'}",
        err=True,
    )
    code = int((last["Status"].get("ContainerStatus") or {}).get("ExitCode") or 0)
    return code if 0 < code < 256 else 1


@job.command()
@click.option("-f", "--follow", is_flag=True, help="Keep printing new lines.")
@click.option("-n", "--tail", default="all", metavar="N", help="Only the last N lines of each task.")
@click.option("--raw", is_flag=True, help="Print the lines alone.")
@click.argument("name", metavar="JOB")
@pass_app
def logs(app: App, *, name: str, follow: bool, tail: str, raw: bool) -> None:
    """Show what the tasks of the present run have said."""
    from fleet.cli.logs import service_logs

    _job(app, name)
    options = {
        "since": None,
        "timestamps": False,
        "details": False,
        "no_resolve": False,
        "no_task_ids": False,
        "no_trunc": False,
    }
    service_logs(app, name, follow=follow, tail=tail, raw=raw, **options)


def _suspend(app: App, names: tuple[str, ...], *, suspends: bool) -> None:
    def changed(spec: Json) -> Json:
        _check_job(spec)
        labels = dict(spec.get("Labels") or {})
        if CRON not in labels:
            raise errors.UserError(f"job {spec['Name']} has no schedule")
        labels.pop(_SUSPENDED, None)
        return {**spec, "Labels": {**labels, _SUSPENDED: "true"} if suspends else labels}

    for name in names:
        post_update(app, name, changed)
        echo(name)


@job.command()
@click.argument("names", metavar="JOB...", nargs=-1, required=True)
@pass_app
def suspend(app: App, *, names: tuple[str, ...]) -> None:
    """Let no run be due; one that is in work goes on."""
    _suspend(app, names, suspends=True)


@job.command()
@click.argument("names", metavar="JOB...", nargs=-1, required=True)
@pass_app
def resume(app: App, *, names: tuple[str, ...]) -> None:
    """Let runs be due again from now on; what was due meanwhile is not made up for."""
    _suspend(app, names, suspends=False)
