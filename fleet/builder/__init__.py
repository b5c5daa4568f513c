"""Images from Dockerfiles, and from containers: the classic builder and ``commit``.

Responsible for reading Dockerfiles and ``.dockerignore``, for the order of steps and for what may be taken from the cache. Not
responsible for running commands (``fleet.containers``) or for keeping layers (``fleet.images``).
"""
