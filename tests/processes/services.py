"""A stand-in for JAX's coordination service, in this process."""

import jax


class Service:
  """The keys of the service, and the barriers at which this process has waited.

  Attributes:
    lost: whether the service does not answer.
  """

  def __init__(self):
    self.keys, self.waits, self.lost = {}, [], False

  def key_value_set(self, key, value, allow_overwrite=False):
    if self.lost:
      raise jax.errors.JaxRuntimeError("UNAVAILABLE: no answer\nmore")
    assert allow_overwrite or key not in self.keys
    self.keys[key] = value

  def key_value_dir_get(self, folder):
    return [(key, value) for key, value in self.keys.items() if key.startswith(f"{folder}/")]

  def key_value_try_get(self, key):
    if key not in self.keys:
      raise jax.errors.JaxRuntimeError("NOT_FOUND: no such key")
    return self.keys[key]

  def wait_at_barrier(self, name, milliseconds):
    self.waits.append(name)
