"""The manager role: dispatcher, orchestrator and scheduler loops, allocator, certificate authority, swarm HTTP routes."""
