"""Proves what it takes to run each node after a cut on fewer tokens."""
