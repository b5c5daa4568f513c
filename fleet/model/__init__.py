"""What the cluster is made of, as values: services, tasks, nodes, networks, secrets. Pure: no I/O, clock or chance."""
