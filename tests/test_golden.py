"""The shardings and bytes per chip of every config equal those in golden files."""

import json

import pytest

from tests.golden import golden, path_of
from tests.test_configs import CONFIGS

ON_PURPOSE = "if it is meant: python -m tests.golden, and look at the diff"


@pytest.mark.parametrize("file", CONFIGS, ids=lambda f: f.stem)
def test_shardings_and_bytes_a_chip(file):
  path = path_of(file)
  assert path.is_file(), f"{path.name} is missing: python -m tests.golden"
  assert golden(file) == json.loads(path.read_text()), ON_PURPOSE
