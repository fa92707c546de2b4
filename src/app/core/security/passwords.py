"""The rule for new passwords: none of the most common ones, and not the owner's name. Schemas check the length."""

from functools import cache
from pathlib import Path

MAX_PASSWORD_LENGTH = 128
_LIST = Path(__file__).with_name("common_passwords.txt")


@cache
def _common_passwords() -> frozenset[str]:
    return frozenset(line for line in _LIST.read_text().splitlines() if not line.startswith("#"))


def weakness(password: str, *names: str) -> str | None:
    """Say why a guesser would try this password early, or None; `names` are the owner's username and e-mail address."""
    folded = password.casefold()
    if folded in _common_passwords():
        return "This password is one of the most common ones: choose another"
    if folded in {part.casefold() for name in names for part in (name, name.partition("@")[0])}:
        return "The password is your username or e-mail address: choose another"
    return None
