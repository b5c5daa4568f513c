"""This host's container engine: records, lifecycle, logs; joins images, network and node_runtime.

Responsible for what a container is called, where its files lie, in which order its parts are made and let go, and that
a crash at any
point is mended by ``ContainerEngine.recover``. Not responsible for what should run (``fleet.agent``), for processes and cgroups
(``fleet.node_runtime``), layers (``fleet.images``) or links (``fleet.network``).
"""

from fleet.containers.attach import Attachment
from fleet.containers.config import ContainerConfig, FileMount, LogConfig, NetworkMode, RestartName, RestartRule
from fleet.containers.engine import ContainerEngine, WaitCondition
from fleet.containers.events import Action, ContainerEvent, Subscription
from fleet.containers.execs import ExecConfig, ExecSession
from fleet.containers.record import Container, ExitStatus, HealthState, MountPoint, RunState, Status
from fleet.containers.volumes import Volume, VolumeStore

__all__ = [
    "Action",
    "Attachment",
    "Container",
    "ContainerConfig",
    "ContainerEngine",
    "ContainerEvent",
    "ExecConfig",
    "ExecSession",
    "ExitStatus",
    "FileMount",
    "HealthState",
    "LogConfig",
    "MountPoint",
    "NetworkMode",
    "RestartName",
    "RestartRule",
    "RunState",
    "Status",
    "Subscription",
    "Volume",
    "VolumeStore",
    "WaitCondition",
]
