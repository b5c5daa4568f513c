"""Containers that go from one host of the cluster to another, with their files, volumes, image and configuration.

Tasks of services go as the managers decide (``orchestrator.carrying``); what is theirs here is the data: ``task_source`` gives
it, ``task_target`` fetches it. README.md has the drawing and what a crash leaves.
"""

from fleet.daemon.moves.moves import Moves

__all__ = ["Moves"]
