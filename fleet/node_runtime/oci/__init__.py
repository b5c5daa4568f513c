"""The OCI runtime command line: one bundle, one container, no daemon; what podman, conmon and containerd's shim drive."""
