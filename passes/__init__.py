"""The passes that shorten a graph, one a file. ``pipeline`` runs them in order: start reading there."""
