"""``fleet stats``: what containers use, once or live."""

from __future__ import annotations

import json
import sys
import threading
from typing import Any, Final

import click

from fleet import errors
from fleet.cli import clock
from fleet.cli.app import App, part, pass_app
from fleet.cli.render import LIST_FORMATS, echo, print_rows, short_id
from fleet.cli.widths import is_live

__all__ = ["stats", "usage_row"]

Json = dict[str, Any]
COLUMNS: Final = (
    ("ID", "CONTAINER ID"), ("Name", "NAME"), ("CPUPerc", "CPU %"), ("MemUsage", "MEM USAGE / LIMIT"), ("MemPerc", "MEM %"),
    ("NetIO", "NET I/O"), ("BlockIO", "BLOCK I/O"), ("PIDs", "PIDS"),
)  # fmt: skip
_SECOND: Final = 1.0


def usage_row(found: Json, *, full: bool) -> Json:
    """One sample of ``GET /containers/ID/stats`` as docker shows it."""
    cpu, before = found.get("cpu_stats") or {}, found.get("precpu_stats") or {}
    spent = _total(cpu) - _total(before)
    system = float(cpu.get("system_cpu_usage") or 0) - float(before.get("system_cpu_usage") or 0)
    online = float(cpu.get("online_cpus") or len((cpu.get("cpu_usage") or {}).get("percpu_usage") or ()) or 1)
    percent = spent / system * online * 100 if spent > 0 and system > 0 else 0.0
    memory = found.get("memory_stats") or {}
    details = memory.get("stats") or {}
    used = int(memory.get("usage") or 0)
    cache = int(details.get("total_inactive_file") or details.get("inactive_file") or 0)
    used = used - cache if cache < used else used
    limit = int(memory.get("limit") or 0)
    networks = (found.get("networks") or {}).values()
    received, sent = (sum(int(net.get(key) or 0) for net in networks) for key in ("rx_bytes", "tx_bytes"))
    read = written = 0
    for entry in (found.get("blkio_stats") or {}).get("io_service_bytes_recursive") or ():
        first = str(entry.get("op", ""))[:1].lower()
        read += int(entry["value"]) if first == "r" else 0
        written += int(entry["value"]) if first == "w" else 0
    key = str(found.get("id") or "")
    return {
        "ID": short_id(key, full=full),
        "Container": short_id(key, full=full),
        "Name": str(found.get("name") or "").lstrip("/") or "--",
        "CPUPerc": f"{percent:.2f}%",
        "MemUsage": f"{clock.memory_size(used)} / {clock.memory_size(limit)}",
        "MemPerc": f"{used / limit * 100 if limit else 0.0:.2f}%",
        "NetIO": f"{clock.human_size(received)} / {clock.human_size(sent)}",
        "BlockIO": f"{clock.human_size(read)} / {clock.human_size(written)}",
        "PIDs": str((found.get("pids_stats") or {}).get("current") or 0),
    }


def _total(cpu: Json) -> float:
    return float((cpu.get("cpu_usage") or {}).get("total_usage") or 0)


class _Samples:
    """The newest sample of each container, one thread a container."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._newest: dict[str, Json] = {}
        self._problems: dict[str, str] = {}

    def once(self, names: list[str]) -> None:
        threads = [threading.Thread(target=self._ask, args=(name,), daemon=True) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _ask(self, name: str) -> None:
        try:
            with self._app.streaming_client() as client:
                found = client.get(f"/containers/{part(name)}/stats", stream=False)
            found = json.loads(found) if isinstance(found, str) else found
            with self._lock:
                self._newest[name] = found
                self._problems.pop(name, None)
        except errors.FleetError as cause:
            with self._lock:
                self._newest.pop(name, None)
                self._problems[name] = str(cause)

    def rows(self, names: list[str], *, full: bool) -> tuple[list[Json], list[str]]:
        with self._lock:
            known = [usage_row(self._newest[name], full=full) for name in names if name in self._newest]
            return known, [self._problems[name] for name in names if name in self._problems]


@click.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Stopped containers too.")
@click.option("--no-stream", is_flag=True, help="Show one result and end.")
@click.option("--no-trunc", is_flag=True, help="Do not shorten output.")
@click.option("--format", "fmt", metavar="FORMAT", help=LIST_FORMATS)
@click.argument("names", metavar="[CONTAINER]...", nargs=-1)
@pass_app
def stats(
    app: App, *, names: tuple[str, ...], everything: bool, no_stream: bool, no_trunc: bool, fmt: str | None
) -> int:
    """Show what containers use: processor, memory, network, disk, processes."""
    samples = _Samples(app)
    while True:
        chosen = list(names) or [
            item["Id"] for item in app.client.get("/containers/json", all=True if everything else None) or ()
        ]
        samples.once(chosen)
        rows, problems = samples.rows(chosen, full=no_trunc)
        if names and problems:
            raise errors.NotFoundError(problems[0])
        if not no_stream and is_live(sys.stdout):
            click.echo("\x1b[2J\x1b[H", nl=False)
        print_rows(rows, columns=COLUMNS, fmt=fmt, full=no_trunc)
        if no_stream:
            return 0
        if not chosen:
            echo()
        clock.sleep(_SECOND)
