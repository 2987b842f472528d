"""Inference: a state that streams, and text from it."""
