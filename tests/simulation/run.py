"""Run seeds, several processes at a time; exit code 1 if any went wrong. ``scripts/simulate`` calls it."""

from __future__ import annotations

import argparse
import functools
import gc
import logging
import multiprocessing
import os
import sys
import time
import warnings

from simulation.faults import FAULTS
from simulation.world import Result, simulate

__all__ = ["main", "one"]

_SHOWN = 60
_SEEDS_A_PROCESS = 50
_made: list[str] = []
"""Faults this process has already; it keeps them."""


def one(seed: int, fault: str = "") -> Result:
    """No destructor of a process that was killed runs while the simulation does; what they complain of afterwards is no news."""
    gc.disable()
    sys.unraisablehook = lambda _: None
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore", RuntimeWarning)  # "was never awaited": of a process that was killed
    if fault and fault not in _made:
        _made.append(fault)
        FAULTS[fault]()
    try:
        return simulate(seed)
    finally:
        gc.collect()


def told(result: Result) -> str:
    lines = [f"seed {result.seed}: {result.problem or 'good'}"]
    lines.append(
        f"  {result.virtual_s:.0f} s, {result.steps} steps, {result.revisions} revisions, requests {result.requests}, "
        f"digest {result.digest[:16]}"
    )
    return "\n".join(lines + [f"  {note}" for note in result.notes[-_SHOWN:]])


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/simulate", description="Simulate a cluster in trouble, from seeds.")
    parser.add_argument("--seeds", type=int, default=100, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time")
    parser.add_argument("-v", "--verbose", action="store_true", help="tell what happened in each")
    parser.add_argument("--until-wrong", action="store_true", help="stop at the first that goes wrong")
    parser.add_argument("--fault", choices=sorted(FAULTS), default="", help="with this mistake put into fleet")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    wrong: list[int] = []
    virtual_s = 0.0
    done = 0
    work = functools.partial(one, fault=options.fault)
    # Not ProcessPoolExecutor: with max_tasks_per_child it can wait for ever (CPython issue 115634).
    # What is imported is frozen, as the collection after each seed need not look at it.
    with multiprocessing.get_context("spawn").Pool(
        options.jobs, initializer=gc.freeze, maxtasksperchild=_SEEDS_A_PROCESS
    ) as pool:
        for result in pool.imap(work, range(options.first, options.first + options.seeds)):
            done += 1
            virtual_s += result.virtual_s
            if result.problem:
                wrong.append(result.seed)
            if options.verbose or result.problem:
                print(told(result), flush=True)
            if result.problem and options.until_wrong:
                break
            if done % 500 == 0:
                print(f"{done} seeds, {len(wrong)} wrong, {time.monotonic() - began:.0f} s", flush=True)
    print(
        f"{done} seeds, {len(wrong)} wrong; {virtual_s / 3600:.1f} simulated hours in {time.monotonic() - began:.0f} s"
    )
    for seed in wrong:
        fault = f" --fault {options.fault}" if options.fault else ""
        print(f"again: scripts/simulate --first {seed} --seeds 1 --verbose{fault}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
