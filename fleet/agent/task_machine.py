"""One step of a task's life: ``(observed state, desired state) -> step``. Pure.

```
ASSIGNED -> ACCEPTED -> PREPARING -> READY -> STARTING -> RUNNING -> COMPLETE | FAILED
```

The agent moves a task forward while its state is below the desired one. *Prepare* and *start* repeat safely, so a daemon
that was killed in the middle takes the same step again. Wanting it to stop beats everything: before a container exists the
task is simply *shutdown*; afterwards the container is stopped first.
"""

from __future__ import annotations

import enum
from typing import assert_never

from fleet.model.task import TaskState

__all__ = ["Step", "fault_state", "next_step"]


class Step(enum.Enum):
    NOTHING = "nothing"
    ACCEPT = "accept"
    PREPARE = "prepare"
    START = "start"
    WATCH = "watch"
    STOP = "stop"


def next_step(observed: TaskState, desired: TaskState) -> Step:
    """What to do now. ``NOTHING`` means: wait until the wish changes."""
    if observed.is_terminal:
        return Step.NOTHING
    if desired.rank >= TaskState.SHUTDOWN.rank:
        return Step.STOP
    match observed:
        case TaskState.NEW | TaskState.PENDING | TaskState.ASSIGNED:
            return Step.ACCEPT
        case TaskState.ACCEPTED | TaskState.PREPARING:
            return Step.PREPARE
        case TaskState.READY:
            return Step.START if desired.rank >= TaskState.RUNNING.rank else Step.NOTHING
        case TaskState.STARTING:
            return Step.START
        case TaskState.RUNNING:
            return Step.WATCH
        case (
            TaskState.COMPLETE
            | TaskState.SHUTDOWN
            | TaskState.FAILED
            | TaskState.REJECTED
            | TaskState.REMOVE
            | TaskState.ORPHANED
        ):
            return Step.NOTHING
    assert_never(observed)


def fault_state(observed: TaskState) -> TaskState:
    """Where a fatal fault leads: *rejected* before starting was tried, *failed* from then on (TSK-06)."""
    return TaskState.REJECTED if observed.rank < TaskState.STARTING.rank else TaskState.FAILED
