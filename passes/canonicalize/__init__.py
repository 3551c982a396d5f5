"""Writes a graph in a form that shows more, with the same results."""
