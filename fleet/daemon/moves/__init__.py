"""Containers that go from one host of the cluster to another, with their files, volumes, image and configuration.

Not for tasks of services, whose place is the scheduler's business. README.md has the drawing and what a crash leaves.
"""

from fleet.daemon.moves.moves import Moves

__all__ = ["Moves"]
