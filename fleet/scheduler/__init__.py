"""Tasks -> nodes: constraints, filters that explain themselves, spread. Pure; reading and writing state is the manager's.

``constraints``  what a user demands of nodes: parse, match
``patterns``     regular expressions that can not take long
``wishes``       strategy, weights and affinity, said in labels of the service
``filters``      which nodes can take a task, and why the others can not
``node_view``    a node as placing sees it: what is free, what runs there
``spread``       the tree by which tasks spread over values of labels
``candidates``   who can take one kind of task, kept in order
``pool``         all nodes, kept through events
``place``        the decision
``explain``      every node's reasons, for a person
``rebalance``    which running tasks would lie better elsewhere

Not here: which tasks should exist (orchestrator), addresses (allocator), preemption, doing a move (orchestrator).
"""
