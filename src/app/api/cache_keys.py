"""Cache keys that contain a username. Renaming or deleting the user removes them."""

OF_USER: list[str] = []
"""Patterns for the stored answers under a username; the module of each cached route under a username adds its own."""
