"""Cache keys of what belongs to a user. Renaming or deleting the user removes them."""

OF_USER: list[str] = []
"""Patterns, with `{username}` for the name; the module of each such route adds its own.

They are needed for routes under a username, and for those that answer rows which are deleted with their user.
"""
