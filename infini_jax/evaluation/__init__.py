"""Evaluation: perplexity of whole documents, knock-out, gates; tables and pictures."""
