"""Which tokens stand where in which batch, and batches read ahead."""
