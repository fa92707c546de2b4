"""The prefixes of cache keys that contain a username. Renaming or deleting the user removes these keys."""

POSTS = "{username}_posts"
POST = "{username}_post_cache"
OF_USER = [f"{prefix}:*" for prefix in (POSTS, POST)]
"""Patterns for every stored answer under a username; add the prefix of your own endpoint above."""
