"""Who signs nodes' certificates: the root's key in the cluster's state, or an authority outside that has it (SEC-06).

Where the settings name an external authority for the root that signs, that one alone is asked, as with Swarm: a key in the
state is no fallback for it, else a certificate could come about behind the authority's back.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from fleet import errors
from fleet.clock import Clock
from fleet.identity.authority import RootAuthority
from fleet.identity.keys import generate_request, make_identity
from fleet.identity.tls import prove_identity
from fleet.manager.external_ca import ExternalAuthority, external_cas_of
from fleet.model.cluster import DEFAULT_CERT_EXPIRY_NS, CaConfig
from fleet.model.defaults import nanoseconds
from fleet.model.ids import ClusterId, NodeId
from fleet.model.node import NodeRole

__all__ = ["Signing"]

_PROOF_LIFETIME: Final = timedelta(days=10 * 365)
"""Long, as the handshake goes by the host's wall clock and not by the manager's ``Clock``; the key is thrown away."""


class Signing:
    """Issues certificates as the settings want it."""

    def __init__(self, clock: Clock, external: ExternalAuthority | None = None) -> None:
        self._clock = clock
        self._external = external or ExternalAuthority(clock)

    async def issue(
        self,
        root: RootAuthority,
        csr_pem: str,
        *,
        config: CaConfig,
        trusted_pem: str,
        node_id: NodeId,
        role: NodeRole,
        cluster_id: ClusterId,
        addresses: Sequence[str] = (),
        lifetime: timedelta | None = None,
    ) -> str:
        """A certificate (PEM) of ``root`` for the request. ``trusted_pem``: the cluster's roots, the present one first; by
        default valid for as long as the settings say, unless an external authority decides it.

        Raises ``UserError`` for a bad request, ``UnavailableError`` when the external authority gives none.
        """
        present = trusted_pem.partition("-----END CERTIFICATE-----")
        cas = external_cas_of(config.external_cas, root_pem=root.cert_pem, present_root_pem="".join(present[:2]))
        if cas:
            return await self._external.issue(
                cas,
                csr_pem,
                root_pem=root.cert_pem,
                trusted_pem=trusted_pem,
                node_id=node_id,
                role=role,
                cluster_id=cluster_id,
                addresses=addresses,
            )
        if not root.key_pem:
            raise errors.UnavailableError(
                "nobody signs certificates: the root's key is outside the cluster, and the settings name no external CA for "
                "this root (swarm update --external-ca protocol=cfssl,url=...,cacert=FILE)"
            )
        return root.issue(
            csr_pem,
            node_id=node_id,
            role=role,
            cluster_id=cluster_id,
            lifetime=lifetime or nanoseconds(config.node_cert_expiry_ns or DEFAULT_CERT_EXPIRY_NS),
            now=self._clock.now(),
            addresses=addresses,
        )

    async def prove(self, root: RootAuthority, *, config: CaConfig, trusted_pem: str, cluster_id: ClusterId) -> None:
        """Have a certificate signed for nobody, and shake hands with it in memory: what nodes would do with theirs.

        Raises ``UserError`` when nodes could not work with certificates of this root, ``UnavailableError`` as ``issue``.
        """
        key = generate_request()
        certificate = await self.issue(
            root,
            key.csr_pem,
            config=config,
            trusted_pem=trusted_pem,
            node_id=NodeId(cluster_id),
            role=NodeRole.WORKER,
            cluster_id=cluster_id,
            lifetime=_PROOF_LIFETIME,
        )
        prove_identity(make_identity(cert_pem=certificate, key_pem=key.key_pem, ca_pem=root.cert_pem))
