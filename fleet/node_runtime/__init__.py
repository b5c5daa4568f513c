"""Starting and supervising processes in namespaces and cgroups. Knows nothing of images, services or managers.

`fleet.node_runtime.client` is the way in, `fleet.node_runtime.spec` the values, `fleet.node_runtime.logs` the reader. This file
stays empty of imports: the supervisor loads it under the system interpreter, where only the standard library exists.
README.md has the drawing.
"""
