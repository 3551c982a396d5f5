"""The page of an explanation: one HTML file that needs no network.

``cells`` knows where on a frame a visual token lies, ``tiles`` arranges scores by it, ``pictures`` makes the images,
``page.html.jinja`` is the page, and ``write`` puts them together.
"""
