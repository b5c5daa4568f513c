"""One host's reconciler: session to a manager, assignments, one controller per task, status upward."""
