"""The passes that shorten a graph: one a file, in the order in which `passes.pipeline` runs them."""
