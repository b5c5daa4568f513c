"""The control plane at scale: real managers, and thousands of nodes that speak the real protocol and pretend only containers.

Managers are hosts of a lab with the real ``fleetd``. Nodes are many to a process (``speaker``): each joins with a token, has its
own certificate and its own mutual-TLS session (the agent's ``Session`` and ``Reporter``); what stands in for worker, controllers
and containers is ``pretend``, which takes the steps of the agent's ``task_machine`` and lets them last as long as it is told.
``run`` is the story, ``sample`` what is measured meanwhile, ``profiled`` the managers' profiler and ``flame`` what is made of its
samples.
"""
