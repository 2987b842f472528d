"""Conversations: their messages, the chat template that writes them, and what the model says."""
