"""The computations that the passes put into a graph, in plain PyTorch: each file is one of them."""
