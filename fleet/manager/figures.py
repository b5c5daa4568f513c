"""What a manager counts while it works; read by ``/metrics``. Kept by the role, so that they outlive a term."""

from __future__ import annotations

from fleet.metrics import LATENCY_S, Counter, Family, Histogram

__all__ = ["ManagerFigures"]


class ManagerFigures:
    """One a manager role; the loops and the dispatcher of each term add to it."""

    def __init__(self) -> None:
        self.scheduler_pass_s = Histogram(
            "fleet_scheduler_pass_seconds", "One pass of the scheduler: deciding for all waiting tasks, and writing it"
        )
        self.scheduler_wait_s = Histogram(
            "fleet_scheduler_wait_seconds",
            "From a task's creation until it had a node",
            buckets=(*LATENCY_S, 30.0, 120.0, 600.0),
        )
        self.beats = Counter("fleet_dispatcher_heartbeats_total", "Heartbeats of agents that this manager received")
        self.reports = Counter("fleet_dispatcher_task_statuses_total", "Task statuses that agents reported here")
        self.node_states = Counter(
            "fleet_node_transitions_total", "State changes of nodes written here, by the new state", ("state",)
        )
        self.scalings = Counter(
            "fleet_autoscale_scalings_total", "Changes of a service's number of replicas by its policy", ("direction",)
        )

    def families(self) -> list[Family]:
        """As they are now."""
        figures = (
            self.scheduler_pass_s,
            self.scheduler_wait_s,
            self.beats,
            self.reports,
            self.node_states,
            self.scalings,
        )
        return [figure.family() for figure in figures]
