"""The small corpus of tests/data."""

from tests.data.conftest import corpus, quiet, store

__all__ = ["corpus", "quiet", "store"]
