"""Routes of the engine API that concern the daemon as a whole: system, swarm membership, networks, logs, distribution."""
