"""`infini-jax report`: one self-contained HTML page that shows runs side by side."""
