"""Tasks -> nodes: constraints, filters that explain themselves, spread. Pure; reading and writing state is the manager's."""
