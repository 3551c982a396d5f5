"""``sharp-compile bench``: how long a prefill takes with and without pruning, next to what its operations allow.

``decoders`` builds language models of real shapes with random weights, ``handpatched`` prunes one the way forks do,
``measure`` times and counts, ``account`` counts without running, ``rows`` is what is told of each, ``plot`` draws, and
``run`` puts them together.
"""


class BenchError(Exception):
    """The benchmark can't go on, for a reason that its user can do something about; the message says what."""
