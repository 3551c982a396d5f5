"""The computations that the passes put into a graph: each file or folder is one of them."""
