"""The control API as one object; each part is what one noun of the API can do."""

from __future__ import annotations

from collections.abc import Callable

from fleet.clock import Clock
from fleet.manager.control.access import TokenControl, UserControl
from fleet.manager.control.autoscale import AutoscaleControl, Scaling, unknown
from fleet.manager.control.cluster import ClusterControl, RotateToken
from fleet.manager.control.context import Context
from fleet.manager.control.data import ConfigControl, SecretControl
from fleet.manager.control.networks import NetworkControl
from fleet.manager.control.nodes import NodeControl
from fleet.manager.control.placement import PlacementControl
from fleet.manager.control.quotas import QuotaControl
from fleet.manager.control.rebalance import RebalanceControl
from fleet.manager.control.services import ServiceControl
from fleet.manager.control.task_moves import TaskMoveControl
from fleet.manager.control.tasks import TaskControl
from fleet.manager.signing import Signing
from fleet.scheduler.filters import Holders, nobody
from fleet.store import Store

__all__ = ["ControlApi"]


class ControlApi:
    """On the leader, over its store. Reads are plain calls that see the tables as they are; writes are coroutines that
    return once the change is durable and visible.

    ``entropy(n)`` gives n random bytes; ``rotate_token`` replaces a role's join token; ``signing`` is
    who signs certificates; ``managers_max`` is how many
    managers the state engine serves; ``holders`` tells which nodes have an image; ``scaling`` what was decided
    lately about a service's number of tasks.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        entropy: Callable[[int], bytes],
        *,
        rotate_token: RotateToken | None = None,
        signing: Signing | None = None,
        managers_max: int = 1,
        holders: Holders = nobody,
        scaling: Scaling = unknown,
    ) -> None:
        context = Context(store, clock, entropy)
        self.store = store
        self.services = ServiceControl(context)
        self.tasks = TaskControl(context)
        self.task_moves = TaskMoveControl(context)
        self.placement = PlacementControl(context, holders=holders)
        self.autoscale = AutoscaleControl(context, scaling=scaling)
        self.quotas = QuotaControl(context)
        self.rebalance = RebalanceControl(context)
        self.nodes = NodeControl(context, managers_max=managers_max)
        self.networks = NetworkControl(context)
        self.secrets = SecretControl(context)
        self.configs = ConfigControl(context)
        self.cluster = ClusterControl(context, rotate_token=rotate_token, signing=signing or Signing(clock))
        self.users = UserControl(context)
        self.tokens = TokenControl(context)
