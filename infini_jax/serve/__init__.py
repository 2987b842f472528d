"""Serving: an HTTP API of OpenAI's shape whose sessions are states of constant size."""
