"""Does what was planned."""
