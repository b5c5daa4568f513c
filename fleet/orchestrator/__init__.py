"""Which tasks should exist: replicated, global, restarts, drain, history. Pure plans over values; the manager applies them."""
