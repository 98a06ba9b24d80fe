"""What goes wrong because of what a user asked for, and how an error lists names."""

from collections.abc import Iterable

__all__ = ['UsageError', 'listing']


class UsageError(ValueError):
    """What a tool was asked to do cannot be done; the message says why and what to do instead."""


def listing(names: Iterable[str], most: int = 20) -> str:
    """Write names in brackets, for an error; nothing if there are none."""
    names = list(names)
    if not names:
        return ''
    more = f', and {len(names) - most} more' if len(names) > most else ''
    return ' (' + '; '.join(names[:most]) + more + ')'
