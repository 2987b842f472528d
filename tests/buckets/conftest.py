"""A stand-in for an object store: a folder, through the same package. No test uses a network."""

import obstore
import pytest

from infini_jax import buckets


class Remote:
  """The store, and machines that use it."""

  def __init__(self, root, monkeypatch):
    self.root, self._patch = root, monkeypatch
    (root / "bucket").mkdir(parents=True)
    real = obstore.store.LocalStore
    self.fails = 0

    def from_url(url, **_):
      if self.fails:
        self.fails -= 1
        raise OSError("no connection")
      return real(prefix=root / url.split("://")[1])

    monkeypatch.setattr(obstore.store, "from_url", from_url)

  def machine(self, name):
    """From now on, all that happens is on this machine, in a new process."""
    buckets._copies.clear()
    self._patch.setenv("XDG_CACHE_HOME", str(self.root / name))

  def files(self, name):
    """The objects below a name, and their contents."""
    folder = self.root / "bucket" / name
    found = (file for file in folder.rglob("*") if file.is_file())
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in found}


@pytest.fixture
def remote(tmp_path, monkeypatch):
  made = Remote(tmp_path, monkeypatch)
  made.machine("here")
  yield made
  buckets._copies.clear()
