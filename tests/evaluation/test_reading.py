"""Which other document's memory is used in a swap."""

import numpy as np

from infini_jax.evaluation.reading import Others


def test_a_lane_is_never_read_with_its_own_memory_once_another_has_read_something(rng):
  B, S, N, chunks = 5, 3, 16, 30
  others, read_B = Others(B), np.zeros(B, int)
  for _ in range(chunks):
    document_BS = np.where(rng.random((B, S)) < 0.85, 1, -1)
    reset_BS = (rng.random((B, S)) < 0.2) | (document_BS < 0)
    chunk = {"document_BS": document_BS, "reset_BS": reset_BS, "skip_B": np.zeros(B, int)}
    from_BS = others.of(chunk, N)
    for s in range(S):
      own_B = np.where(reset_BS[:, s], 0, read_B)
      for b in range(B):
        have = [c for c in range(B) if c != b and read_B[c]]
        chosen = from_BS[b, s]
        if not have:
          assert chosen == b
          continue
        assert chosen in have
        least = min(abs(read_B[c] - own_B[b]) for c in have)
        assert abs(read_B[chosen] - own_B[b]) == least, "another has read more nearly as much"
      read_B = np.where(document_BS[:, s] >= 0, own_B + N, read_B)


def test_lanes_in_step_are_read_with_each_others_memories():
  chunk = {"document_BS": np.ones((4, 3), int), "reset_BS": np.zeros((4, 3), bool)}
  chunk["skip_B"] = np.zeros(4, int)
  from_BS = Others(4).of(chunk, 16)
  assert from_BS[:, 0].tolist() == [0, 1, 2, 3], "nothing was read yet"
  assert from_BS[:, 1].tolist() == from_BS[:, 2].tolist() == [1, 2, 3, 0]
