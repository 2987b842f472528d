"""Training: optimizer groups, the step, the loop, checkpoints, metrics."""
