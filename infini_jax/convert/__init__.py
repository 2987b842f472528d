"""Weights of other programs in, and out again: Hugging Face folders and GGUF files.

What comes in is a run like any other, whose model is the original itself. No pickle is ever read.
"""
