"""Cache keys of a user's resources. Renaming or deleting the user removes these keys."""

OF_USER: list[str] = []
"""Patterns, with `{username}` for the name; the module of each such route adds its own.

Routes under a username need one, and so do routes that answer rows which are deleted with their user.
"""
