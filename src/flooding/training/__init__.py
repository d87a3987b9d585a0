"""Training: what a Run is, the loop, and many Runs at once."""
