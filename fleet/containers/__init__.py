"""This host's container engine: records, lifecycle, logs; joins images, network and node_runtime."""
