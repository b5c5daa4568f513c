"""Who is who: the cluster's certificate authority, join tokens, node certificates, TLS contexts, roles."""
