"""The tasks of a model: generated examples, documents with summaries, and their lanes.

`open_dataset` opens the data of a config; `train_lanes` arranges it in batches; `make_task` makes
the task that generates examples. No module here depends on a model.
"""

from infini_jax.tasks.chat import Conversations
from infini_jax.tasks.example import Facts, Task, check_length
from infini_jax.tasks.from_config import (
  Dataset,
  Lanes,
  TaskAndText,
  mixture_shares,
  open_dataset,
  open_training,
  train_lanes,
)
from infini_jax.tasks.lanes import Examples, TaskLanes
from infini_jax.tasks.published import Benchmark
from infini_jax.tasks.registry import make_task
from infini_jax.tasks.summarization import Pairs

__all__ = [
  "Benchmark",
  "Conversations",
  "Dataset",
  "Examples",
  "Facts",
  "Lanes",
  "Pairs",
  "Task",
  "TaskAndText",
  "TaskLanes",
  "check_length",
  "make_task",
  "mixture_shares",
  "open_dataset",
  "open_training",
  "train_lanes",
]
