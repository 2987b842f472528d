"""What a model is asked: examples made on the spot, documents with summaries, and their lanes.

`open_source` opens what a config reads; `train_lanes` lays it out as batches; `make_task` makes the
examples of a task. Nothing here knows a model.
"""

from infini_jax.tasks.example import Task, check_length
from infini_jax.tasks.from_config import Lanes, Source, open_source, train_lanes
from infini_jax.tasks.lanes import Examples, TaskLanes
from infini_jax.tasks.registry import make_task
from infini_jax.tasks.summarization import PairLanes, Pairs

__all__ = [
  "Examples",
  "Lanes",
  "PairLanes",
  "Pairs",
  "Source",
  "Task",
  "TaskLanes",
  "check_length",
  "make_task",
  "open_source",
  "train_lanes",
]
