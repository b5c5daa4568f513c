"""A cluster of several hosts on one machine: each a network and pid namespace with its own fleetd."""
