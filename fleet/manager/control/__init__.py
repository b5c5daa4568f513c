"""What the API may do to the cluster's desired state: check it, resolve names, write it.

Responsible for: validation with a sentence for the user, versions and conflicts, what is in use by whom. Not responsible
for: HTTP (``fleet.manager.http``), addresses and ports that the user left open (the allocator), which tasks exist and where
they run (the orchestrator and the scheduler).
"""

from fleet.manager.control.api import ControlApi

__all__ = ["ControlApi"]
