"""Import and export of weights: Hugging Face folders and GGUF files.

An import makes an ordinary run whose model computes what the original computes. No pickle is read.
"""
