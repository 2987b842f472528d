"""Evaluation: perplexity, retrieval, summaries, ablations, gates; tables and pictures."""
