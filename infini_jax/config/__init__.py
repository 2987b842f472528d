"""The config of an experiment: `schema` declares the fields, `checks` finds errors in the values.

A config file is Python: it calls `base_config()`, edits the result, and returns it. The result is a
locked `ml_collections.ConfigDict` that holds every field with its default. `resolve` converts it to
the frozen `Config` that the rest of the package reads. No module here uses a device or imports the
rest of the package.
"""

from infini_jax.config.adaptation import Stage, original, stage_at, stages, tokens_read
from infini_jax.config.arguments import load_config
from infini_jax.config.base import base_config
from infini_jax.config.bounds import InputError
from infini_jax.config.checks import check
from infini_jax.config.migration import migrated, moved_to
from infini_jax.config.mixing import MixStage, mix_stages
from infini_jax.config.model import (
  HOW_TO_RUN,
  AdaptersConfig,
  FamilyConfig,
  ModelConfig,
  RunConfig,
  SizesConfig,
)
from infini_jax.config.optimization import decay_start
from infini_jax.config.resolve import check_name, difference, from_json, resolve
from infini_jax.config.schema import (
  ALL_SPLITS,
  LEAST,
  MOST,
  SECTIONS,
  SPLITS,
  Config,
  DataConfig,
  MeshConfig,
  NeedleConfig,
  TaskConfig,
  WarmConfig,
)
from infini_jax.config.systems import SYSTEMS, System
from infini_jax.config.tasks import TASKS

__all__ = [
  "ALL_SPLITS",
  "HOW_TO_RUN",
  "LEAST",
  "MOST",
  "SECTIONS",
  "SPLITS",
  "SYSTEMS",
  "TASKS",
  "AdaptersConfig",
  "Config",
  "DataConfig",
  "FamilyConfig",
  "InputError",
  "MeshConfig",
  "MixStage",
  "ModelConfig",
  "NeedleConfig",
  "RunConfig",
  "SizesConfig",
  "Stage",
  "System",
  "TaskConfig",
  "WarmConfig",
  "base_config",
  "check",
  "check_name",
  "decay_start",
  "difference",
  "from_json",
  "load_config",
  "migrated",
  "mix_stages",
  "moved_to",
  "original",
  "resolve",
  "stage_at",
  "stages",
  "tokens_read",
]
