"""Proves what it takes to run each node behind a cut on fewer tokens."""
