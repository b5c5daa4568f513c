"""The dashboard: a page at ``/`` that reads the manager API, and the guard that browsers need in front of that API.

Responsible for: the static files, their headers, at which listeners they are served (``pages``); refusing what another web
site makes a browser ask of this daemon (``guard``). Not for data: the page has no route of its own, it is one more client of
the engine API and ``/fleet/v1``.
"""

from fleet.daemon.dashboard.guard import BrowserGuard
from fleet.daemon.dashboard.pages import DashboardMode, DashboardPages

__all__ = ["BrowserGuard", "DashboardMode", "DashboardPages"]
