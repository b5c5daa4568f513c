"""Containers of tasks from any manager: ``exec`` and ``inspect`` as if they were here.

A manager that is asked for a container it has not looks among the tasks (by container id, task id, or name) and passes the
request on to the task's node, over the cluster's mutual TLS. So ``docker exec`` and ``fleet service exec`` need no way to
the nodes.

``manager`` is the side that passes on, ``node`` the side that does it, and only for containers of tasks: a manager has no
business with what else runs on a host. A stream goes through a WebSocket, since TLS cannot end one direction alone: an empty
frame is the end of the input.
"""

from fleet.daemon.remote.manager import RemoteTasks
from fleet.daemon.remote.node import cluster_exec_routes

__all__ = ["RemoteTasks", "cluster_exec_routes"]
