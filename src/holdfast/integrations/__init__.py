"""Plug-ins that put Holdfast's objectives into the trainers people already use; each is imported by its own name."""
