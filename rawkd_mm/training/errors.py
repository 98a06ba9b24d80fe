"""What goes wrong because of what a user asked for."""

__all__ = ['UsageError']


class UsageError(ValueError):
    """What a tool was asked to do cannot be done; the message says why and what to do instead."""
