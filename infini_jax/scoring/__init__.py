"""Log-probabilities of texts as JSON lines, and the model class of lm-evaluation-harness."""
