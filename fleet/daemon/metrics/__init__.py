"""What Prometheus reads at ``/metrics``: figures of the cluster, of this host and of this process, gathered when asked for.

Responsible for gathering and for the two ways to them: the engine API, guarded like the rest of it, and ``--metrics-addr``, a
listener of its own without TLS. Not for counting: the parts do that themselves (``fleet.metrics``).
"""

from fleet.daemon.metrics.exposition import Exposition, metrics_app
from fleet.daemon.metrics.requests import RequestFigures

__all__ = ["Exposition", "RequestFigures", "metrics_app"]
