"""Golden folders as runs, each converted once."""

import functools

import pytest

from infini_jax.convert.huggingface import convert
from tests.convert.golden import HERE
from tests.convert.reading import console


@pytest.fixture(scope="session")
def converted(tmp_path_factory):
  """From the name of a golden folder to the run that it becomes."""

  @functools.cache
  def run(name):
    out = tmp_path_factory.mktemp("converted") / name
    convert(str(HERE / name), out, None, console())
    return out

  return run
