"""What a graph shows: read, never written. Every reason to decline comes from here or from `token_dim`."""
