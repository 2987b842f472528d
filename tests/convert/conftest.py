"""Runs converted from golden folders, each once."""

import functools

import pytest

from infini_jax.convert.huggingface import convert
from tests.convert.golden import HERE
from tests.convert.reading import console


@pytest.fixture(scope="session")
def converted(tmp_path_factory):
  """A function from the name of a golden folder to the converted run."""

  @functools.cache
  def run(name):
    out = tmp_path_factory.mktemp("converted") / name
    convert(str(HERE / name), out, None, console())
    return out

  return run
