"""Compose files as text -> service specs. Pure; deploying them is the command line's business."""
