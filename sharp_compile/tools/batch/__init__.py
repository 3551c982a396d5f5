"""One question about every video of a folder, answered by a pruned model: a line of JSON for each video.

``folder`` lists the videos, ``answer`` asks a model about one, ``results`` keeps the file by which a run that was
stopped goes on, ``run`` puts them together, ``arguments`` reads the command line, ``clips`` renders videos to try it
on. Where the model runs is the caller's: ``examples/folder_of_videos.py`` asks in its own process,
``examples/ray_videos.py`` in several.
"""


class BatchError(Exception):
    """The run can't go on, for a reason that its user can do something about; the message says what."""
