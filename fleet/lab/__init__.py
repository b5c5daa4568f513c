"""A cluster of several hosts on one machine: each a network and pid namespace with its own fleetd.

``Lab`` is the whole interface: the ``fleet lab`` commands, the end-to-end tests and the benchmarks use nothing else. The README
beside this file draws what a lab is made of and says what a crash at each point leaves behind.
"""

from __future__ import annotations

from fleet.lab.lab import DEFAULT_ROOT, HostStatus, Lab, list_labs

__all__ = ["DEFAULT_ROOT", "HostStatus", "Lab", "list_labs"]
