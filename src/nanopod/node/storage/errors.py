"""How fetching fails: for good, for now, or because nobody wants it any more."""

from __future__ import annotations


class StorageFailed(Exception):
    """The files cannot be had. `user_fault`: trying again, here or elsewhere, does not help."""

    def __init__(self, message: str, *, user_fault: bool = True) -> None:
        super().__init__(message)
        self.user_fault = user_fault


class Broken(Exception):
    """One try did not work and another one may."""


class GivenUp(Exception):
    """Nobody waits for it any more."""
