"""The fleet command: parses, calls the engine API, renders. No cluster logic.

One module per noun; ``main`` finds them lazily, because a command should cost its own imports and no others'. A command
is: read flags, one or a few calls through ``app.App.client``, rows to ``render``. What flags mean for a service spec is
``service_spec`` (pure); waiting until a service has converged is ``converge``.
"""
