"""``scripts/scale``: options, the table, the file of numbers."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from bench.scale import plan
from bench.scale.run import Options, Row, tell

KILLED = "leader_killed_to_new_leader_s"
"""Rows that have it say nothing of the leader's processor time: what the dead one spent is not known any more."""


def show(rows: Sequence[Row], tasks: int) -> None:
    """Steps, then the API's answers, then memory. ``ms CPU``: of the busiest manager, for one of what is counted: that does not
    depend on what else the machine does, as seconds do."""
    print(f"\n{'step':44}{'s':>9}{'count':>9}{'/s':>9}{'ms CPU':>9}   cores: managers   etcd   nodes  others")
    for row in rows:
        kinds = {kind: sum(c for what, c in row.cores.items() if what.startswith(kind)) for kind in ("fleetd", "etcd")}
        leading = max((c for what, c in row.cores.items() if what.startswith("fleetd")), default=0.0)
        print(
            f"{row.step:44}{row.seconds:9.1f}{row.count or '':>9}{f'{row.rate:.0f}' if row.count else '':>9}"
            f"{f'{leading * row.seconds / row.count * 1000:.2f}' if row.count and not row.figures.get(KILLED) else '':>9}"
            f"{kinds['fleetd']:12.2f} ({leading:.2f}){kinds['etcd']:7.2f}{row.cores.get('nodes', 0.0):8.2f}{row.others:8.2f}"
        )
        for what, figure in row.figures.items():
            print(f"    {what.removesuffix('_s').replace('_', ' ')}: {figure:.1f} s")
    print(f"\n{'API meanwhile, ms':44}{'p50':>9}{'p99':>9}{'asked':>9}")
    for row in rows:
        for what, found in row.api.items():
            if isinstance(found, dict) and found["count"]:
                print(f"{f'{row.step[:24]}: {what}':44}{found['p50_ms']:9.1f}{found['p99_ms']:9.1f}{found['count']:9}")
        if row.api.get("failed"):
            print(f"{f'{row.step[:24]}: without an answer':44}{'':18}{row.api['failed']:9}")
    before = next((row.memory_mib for row in rows if row.step.startswith("idle, all nodes")), {})
    after = next((row.memory_mib for row in rows if row.step.startswith("idle, all tasks")), {})
    for what, mib in after.items():
        if what in before and tasks:
            each = (mib - before[what]) / tasks * 1000
            print(
                f"{what:12} {before[what]:8.0f} MiB without tasks, {mib:8.0f} MiB with; {each:.2f} MiB for 1,000 tasks"
            )
    for row in rows:
        if row.parts:
            first = ", ".join(f"{part} {share:.0%}" for part, share in list(row.parts.items())[:6])
            print(f"leader's time, {row.step}: {first}")


def main(arguments: Sequence[str]) -> int:
    """Exit code: 1 when the story ended early, 130 after ^C."""
    if "--plan" in arguments:
        return plan.main([argument for argument in arguments if argument != "--plan"])
    parser = argparse.ArgumentParser(
        prog="scripts/scale",
        description="The control plane at scale: real managers, nodes that pretend only containers.",
    )
    parser.add_argument(
        "--plan", action="store_true", help="instead: what saturates first at sizes no machine here has"
    )
    parser.add_argument("--agents", type=int, default=5_000, help="nodes (default 5,000)")
    parser.add_argument("--tasks", type=int, default=100_000, help="of all services together (default 100,000)")
    parser.add_argument("--managers", type=int, default=1, choices=(1, 3, 5), help="1: SQLite; more: fleet's own etcd")
    parser.add_argument("--replicas", type=int, default=100, help="of each service (default 100)")
    parser.add_argument("--update-replicas", type=int, default=10_000, help="in the rolling update (default 10,000)")
    parser.add_argument("--processes", type=int, default=0, help="that nodes are in (default one for 1,500 nodes)")
    parser.add_argument(
        "--heartbeat", type=float, default=0.0, metavar="S", help="least heartbeat period (default the cluster's, 1 s)"
    )
    parser.add_argument(
        "--idle", type=float, default=10.0, metavar="S", help="how long to look at it idle (default 10)"
    )
    parser.add_argument("--timeout", type=float, default=1_800.0, metavar="S", help="for each step (default 1,800)")
    parser.add_argument(
        "--profile", type=Path, metavar="DIR", help="tables and pictures of where the leader's time goes"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there too")
    options = parser.parse_args(arguments)
    if options.agents < 2 or options.tasks < 1 or options.replicas < 1:
        parser.error("at least 2 nodes, 1 task and 1 replica")
    if os.geteuid() != 0:
        parser.error("managers are hosts of a lab, which only root may make: run it with sudo")

    def end(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    chosen = Options(
        agents=options.agents,
        tasks=options.tasks,
        managers=options.managers,
        replicas=options.replicas,
        update_replicas=min(options.update_replicas, options.tasks),
        processes=options.processes or max(1, -(-options.agents // 1_500)),
        heartbeat_s=options.heartbeat,
        idle_s=options.idle,
        timeout_s=options.timeout,
        profile=options.profile,
    )
    load = os.getloadavg()
    try:
        rows, why = tell(chosen, lambda text: print(f"scale: {text}", file=sys.stderr, flush=True))
    except KeyboardInterrupt:
        print("scale: ended; nothing is left behind", file=sys.stderr)
        return 130
    print(f"{chosen.agents} nodes, {chosen.tasks} tasks, {chosen.managers} manager(s), {os.cpu_count()} processors")
    print(f"load of the machine before: {load[0]:.1f}; 'others' is what other programs took meanwhile, in cores")
    show(rows, chosen.tasks)
    if options.json:
        told = dataclasses.asdict(chosen) | {"profile": str(options.profile or "")}
        numbers = {
            "options": told,
            "load_before": load[0],
            "rows": [dataclasses.asdict(row) for row in rows],
            "ended": why,
        }
        options.json.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    if why:
        print(f"scale: ended early: {why}", file=sys.stderr)
    return 1 if why else 0


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main(sys.argv[1:]))
