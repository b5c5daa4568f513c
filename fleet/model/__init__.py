"""What the cluster is made of: services, tasks, nodes, networks, secrets, configs as values. Pure: no I/O, no clock, no chance."""
