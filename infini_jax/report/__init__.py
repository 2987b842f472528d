"""`infini-jax report`: runs side by side on one page, a file that needs nothing else."""
