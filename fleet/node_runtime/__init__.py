"""Starting and supervising processes in namespaces and cgroups. Knows nothing of images, services or managers."""
