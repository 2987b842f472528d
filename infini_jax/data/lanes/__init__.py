"""The tokens of each batch in lanes, and batches read ahead."""
