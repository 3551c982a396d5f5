"""What the passes ask of FX nodes, and how they add some."""
