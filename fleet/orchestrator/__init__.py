"""Which tasks should exist: replicated, global, restarts, drain, history. Pure plans over values; the manager applies them.

``view``        a service with its tasks and the nodes, as one snapshot
``plan``        what to do, as data: buckets of actions, what is waited for, when to look again
``service``     the entry: ``plan_service``
``replicated``  N slots                      ``global_``   one task a node
``job``         tasks that are to end well, and then are left alone
``slot``        what one slot needs          ``restart``   whether, when and after whom a task is replaced
``eviction``    tasks whose node is lost     ``update``    the rolling update and its way back
``reaper``      history, orphans, remains    ``check_plan`` the invariants of a plan

Not here: where tasks go (scheduler), addresses (allocator), containers (agent), reading and writing state (manager/loops).
"""
