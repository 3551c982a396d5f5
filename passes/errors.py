"""The exceptions of the passes."""


class CannotPrune(Exception):
    """A graph has visual tokens but can't be proven safe to shorten; it then runs unpruned.

    The message is a reason that a person can act on: what was found, and what to change.
    """


class SelectorError(ValueError):
    """A selector of the user's that can't be compiled; the message names it and its line."""


class UnsupportedOp(Exception):
    """An operator was applied to tokens in a way that is not known to stay right with fewer of them."""


class PositionalOp(UnsupportedOp):
    """An operator addresses tokens by their positions in the whole sequence."""
