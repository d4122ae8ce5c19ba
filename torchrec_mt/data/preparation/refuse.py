"""How a check of the declaration refuses: one message that starts with the key."""

from collections.abc import Iterable

from torchrec_mt.errors import UserError


def require(condition: object, key: str, message: str) -> None:
    """Raises a UserError `KEY: MESSAGE` unless the condition holds."""
    if not condition:
        raise UserError(f"{key}: {message}")


def names_of(names: Iterable[str]) -> str:
    """Names in quotes, for a message."""
    return ", ".join(f"'{name}'" for name in names) or "none"
