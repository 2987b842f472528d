"""`infini-jax sweep`: one training for each combination of some fields' values."""
