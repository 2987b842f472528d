"""Small data sets that tests prepare under official names."""

import contextlib
import io

import numpy as np


def write_tfds(folder, dataset, splits, file_format="array_record", config=None, version="0.1.1"):
  """Prepares the rows of each split; the first row defines the features."""
  import tensorflow_datasets as tfds

  kinds = {
    int: np.int32,
    str: tfds.features.Text(),
    list: tfds.features.Sequence(np.int32),
    io.BytesIO: tfds.features.Image(),  # which takes a file as it is, and decodes it when read
  }
  first = next(iter(splits.values()))[0]
  features = {field: kinds[type(value)] for field, value in first.items()}
  number = tfds.core.Version(version)

  class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    name = dataset
    VERSION = number
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config, version=number)] if config else []

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
      )

    def _split_generators(self, manager):
      return {split: self._generate_examples(rows) for split, rows in splits.items()}

    def _generate_examples(self, rows):
      yield from enumerate(rows)

  with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
    Builder(data_dir=str(folder), file_format=file_format).download_and_prepare()
  return folder / dataset / (config or "") / version


def pg19(texts):
  """Rows of books with all features of the official data set."""
  return [
    {
      "book_text": text,
      "book_id": i,
      "book_title": f"Title {i}",
      "publication_date": "1816",
      "book_link": "",
    }
    for i, text in enumerate(texts)
  ]
