"""Documents without files, and a small corpus in files."""

import numpy as np


class FakeDocuments:
  """Documents in memory whose tokens encode their origin: 1000 * document + place."""

  def __init__(self, lengths):
    self.tokens = np.array(lengths, np.int64)

  def __len__(self):
    return len(self.tokens)

  def ids(self, document):
    return 1000 * (document + 1) + np.arange(self.tokens[document], dtype=np.int32)

  def read(self, document, start, stop):
    assert 0 <= start <= stop <= self.tokens[document]
    return self.ids(document)[start:stop]


def write_corpus(folder, documents=12, characters=300):
  """Files of different lengths, in two folders, with characters of one to four bytes."""
  for i in range(documents):
    file = folder / ("a" if i % 2 else "b") / f"{i:03d}.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    line = f"Document {i}: naïve 日本 🙂 text with\ttabs\n    and indents.\n"
    file.write_text(line * (1 + i * characters // (12 * len(line))), "utf-8")
  return folder
