"""Secrets: `passwords` (the rule for new ones, and hashing), `tokens` (access and refresh tokens)."""

from app.core.security.passwords import MAX_PASSWORD_LENGTH, PasswordHasher, weakness
from app.core.security.tokens import AccessToken, RefreshToken, TokenSigner, hash_of, new_secret

__all__ = [
    "MAX_PASSWORD_LENGTH", "AccessToken", "PasswordHasher", "RefreshToken", "TokenSigner", "hash_of", "new_secret",
    "weakness",
]  # fmt: skip
