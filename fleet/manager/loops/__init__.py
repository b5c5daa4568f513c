"""The loops around the pure deciders: read the tables, plan, write what was planned, say it in a sentence, wait.

They hold nothing that matters: a loop that is cancelled, fails or moves to another leader begins by looking at everything.
"""

from __future__ import annotations

from fleet.manager.loops.managers import ManagersLoop
from fleet.manager.loops.orchestrator import OrchestratorLoop
from fleet.manager.loops.reaper import ReaperLoop
from fleet.manager.loops.rebalance import RebalanceLoop
from fleet.manager.loops.rotation import RotationLoop
from fleet.manager.loops.scheduler import SchedulerLoop
from fleet.manager.loops.sealing import SealingLoop

__all__ = [
    "ManagersLoop",
    "OrchestratorLoop",
    "ReaperLoop",
    "RebalanceLoop",
    "RotationLoop",
    "SchedulerLoop",
    "SealingLoop",
]
