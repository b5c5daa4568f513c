"""The doctor of networks: `fleet network doctor`.

A manager asks every host over the cluster's mutual TLS, in three steps, so that all listen before anyone speaks:

    listen   each host opens its ears and says on which networks, with which MTU, and from whom it lets packets in
    look     each host examines itself, and sends marked VXLAN packets to the ears of the others
    heard    each host says what arrived, and closes its ears

``words`` is what they say, ``host`` one host's part, ``director`` the manager's, ``verdict`` (pure) what it means when a packet
was sent and not heard, ``http`` the routes. A host without a manager (a worker, or one in no cluster) examines itself alone.
Nothing is mended and nothing is kept; ears that nobody comes back to are closed after a minute.
"""

from fleet.daemon.doctor.director import Doctor
from fleet.daemon.doctor.host import HostDoctor

__all__ = ["Doctor", "HostDoctor"]
