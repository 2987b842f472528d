"""A small corpus, prepared once."""

import io

import pytest
from rich.console import Console

from infini_jax.data import Store, prepare
from tests.data.data_fakes import write_corpus


@pytest.fixture
def quiet():
  return Console(file=io.StringIO())


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
  return write_corpus(tmp_path_factory.mktemp("corpus"), documents=30, characters=3000)


@pytest.fixture(scope="session")
def store(corpus, tmp_path_factory) -> Store:
  out = tmp_path_factory.mktemp("stores") / "bytes"
  return prepare(str(corpus), out, "bytes", console=Console(file=io.StringIO()))
