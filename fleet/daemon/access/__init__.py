"""Who asks, and whether they may: in front of every route of the engine API.

``authenticate`` says who sent a request, ``table`` what each route needs, ``gate`` puts the two together; ``objects``,
``bodies`` and ``answers`` keep a grant with a scope within it, ``host_access`` finds what would make an operator root on a
host. Not responsible for: users and tokens themselves (``fleet.manager.control.access``), the cluster port, which knows nodes
and no users.
"""

from fleet.daemon.access.authenticate import Authenticator
from fleet.daemon.access.gate import AccessGate
from fleet.daemon.access.principal import PRINCIPAL, Principal
from fleet.daemon.access.table import TABLE, Need, Reach, Row, row_of

__all__ = ["PRINCIPAL", "TABLE", "AccessGate", "Authenticator", "Need", "Principal", "Reach", "Row", "row_of"]
