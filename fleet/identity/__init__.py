"""Who is who: the cluster's certificate authority, join tokens, node certificates, TLS contexts, roles.

``authority``  makes the root and signs what nodes request          (managers)
``tokens``     the secret that admits a node, bound to one root     (managers and joining nodes)
``keys``       a node's key and certificate, kept through crashes   (every node)
``tls``        contexts for every connection between hosts          (every node)

Not here: deciding who may join or renew, storing the root, refusing removed nodes (the manager does), and HTTP.
"""
