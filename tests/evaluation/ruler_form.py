"""Writes files of the form that RULER's generator writes, with the needles of this package."""

import json

import numpy as np

from infini_jax.tasks import make_task
from infini_jax.tasks.needle_families import IN_FILLER

# RULER's names of tasks, and the needles that are like them.
TASKS = {
  "niah_single_1": {"family": "single"},
  "niah_multikey_1": {"family": "multikey"},
  "niah_multivalue": {"family": "multivalue"},
  "niah_multiquery": {"family": "multiquery"},
  "vt": {"family": "variables", "needles": 1},
  "cwe": {"family": "common_words", "needles": 2},
  "fwe": {"family": "frequent_words"},
  "qa_1": {"family": "facts"},
}


def write(folder, config, store, lengths, samples=1, tasks=tuple(TASKS), seed=0):
  """One file for each length and task: FOLDER/LENGTH/data/TASK/validation.jsonl."""
  rng = np.random.default_rng(seed)
  for length in lengths:
    for name in tasks:
      filler = store if TASKS[name]["family"] in IN_FILLER else None
      task = make_task(config.with_fields(needle=TASKS[name]), "needle", store.tokenizer, filler)
      file = folder / str(length) / "data" / name / "validation.jsonl"
      file.parent.mkdir(parents=True)
      with file.open("w") as out:
        for index in range(samples):
          made = task.example(rng, length, held_out=True)
          decode = task.tokenizer.decode
          answers = [
            decode(made.spans[i].read(0, made.spans[i].size)) for i in sorted(made.answers)
          ]
          row = {"index": index, "input": decode(made.read(0, made.first_asked))}
          row |= {"outputs": [answer.strip(" .,") for answer in answers], "length": length}
          out.write(json.dumps(row) + "\n")
  return folder
