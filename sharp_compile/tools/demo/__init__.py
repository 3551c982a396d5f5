"""``sharp-compile demo``: a real video through two models, pruned and unpruned, as a table and a picture.

``video`` decodes, ``models`` builds the models and their inputs, ``measure`` counts, ``picture`` draws, and ``run``
puts them together.
"""


class DemoError(Exception):
    """The demo can't go on, for a reason that its user can do something about; the message says what."""
