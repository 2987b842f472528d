"""Every field of the config has an effect: a change of it changes what a run computes."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax import config as config_lib
from infini_jax.config import InputError, stage_at
from infini_jax.config.unread import unread
from infini_jax.data import Store
from infini_jax.data.tokenizers import ByteTokenizer
from infini_jax.models import abstract_params, bind, init
from infini_jax.ops.loss import weighted_loss
from infini_jax.parallel import abstract_batch, make_mesh
from infini_jax.tasks import TaskAndText, make_task, train_lanes
from infini_jax.training.optimizer import make_optimizer
from infini_jax.training.step import abstract_state, abstract_teacher, make_train_step
from infini_jax.training.trainable import split
from tests.tiny import config

# Fields that the traced program does not show, and the tests that show them.
SEEN_ELSEWHERE = {
  **dict.fromkeys(
    ("family.rope_scaling", "family.attention_bias", "family.norm_plus_one", "family.post_norms")
    + ("family.embed_scale", "family.query_scale", "family.attention_softcap", "family.window")
    + ("family.global_every", "family.global_nope", "family.window_theta"),
    "tests/models/test_families.py: each alone changes the logits",
  ),
  "data.path": "tests/test_cli.py: each corpus is another path",
  "data.stages": "tests/data/store/test_mixture.py: each stage has other weights",
  "data.tokenizer": "tests/data: open_or_prepare",
  "train.start_from": "tests/training/test_start.py",
  "needle.filler": "tests/tasks/test_needles.py: a run is asked in any text",
  "train.log_every": "tests/training/test_loop.py: sparse logging",
  "train.eval_every": "tests/training/test_loop.py: validation during training",
  "train.eval_documents": "tests/training/test_loop.py: validation during training",
  "train.checkpoint_every": "tests/training/test_loop.py: the checkpoints that are kept",
  "run.compilation_cache": "tests/test_cli.py: a second run finds the first one's programs",
  "run.attention": "tests/ops/test_kernels.py: what each name chooses, and refuses",
  "train.keep_checkpoints": "tests/training/test_loop.py: the checkpoints that are kept",
  "guard.hang": "tests/training/test_guard.py: a process without progress ends",
  "guard.returns": "tests/training/test_guard.py: training goes back so often",
  "log.tensorboard": "tests/training/test_loop.py: validation and sparse logging",
  "log.wandb": "a package that is not installed here; refused, tests/test_config.py",
  "log.profile_start": "tests/training/test_loop.py: profile",
  "log.profile_steps": "tests/training/test_loop.py: profile",
  "chat.template": "tests/data/chat/test_conversation.py: a config names the template",
  "chat.max_tokens": "tests/tasks/test_chat.py: long conversations",
  "chat.too_long": "tests/tasks/test_chat.py: long conversations",
  "data.prefetch": "tests/data/lanes/test_loader.py: by design it changes no batch",
  "data.patience": "tests/data/lanes/test_loader.py: a read that hangs is tried again",
  "evaluation.split": "tests/evaluation/test_evaluate.py: an earlier step, validation",
  "evaluation.lanes": "tests/evaluation/test_perplexity.py: by design it changes no total",
  "evaluation.segments": "tests/evaluation/test_perplexity.py: by design it changes no total",
  "evaluation.document": "tests/evaluation/test_own_text.py: one document",
  "evaluation.max_documents": "tests/evaluation/test_perplexity.py: limits",
  "evaluation.max_tokens": "tests/evaluation/test_perplexity.py: limits",
  "evaluation.input_tokens": "tests/evaluation/test_perplexity.py: inputs",
  "evaluation.task": "tests/evaluation/test_evaluate.py: a run on text is asked for a pass key",
  "evaluation.knock_out": "tests/evaluation/test_knock_out.py, and test_evaluate.py: the variants",
  "evaluation.lengths": "tests/evaluation/test_evaluate.py: a task's evaluation",
  "evaluation.depths": "tests/evaluation/test_evaluate.py: a run on text is asked for a pass key",
  "evaluation.samples": "tests/evaluation/test_evaluate.py: a task's evaluation",
  "evaluation.summary_length": "tests/evaluation/test_summarization.py: limits",
  "evaluation.temperature": "tests/evaluation/test_summarization.py: limits",
  "evaluation.top_p": "tests/evaluation/test_summarization.py: limits",
}
# Values for fields that cannot simply be doubled.
ANOTHER = {
  "model.pattern": ("infini", "local"),
  "model.mixer": "local",
  "infini.rule": "delta",
  "infini.gate_init": 1.0,
  "model.activation": "gelu",
  "family.logit_softcap": 5.0,
  "adapters.rank": 2,
  "run.remat": "dots",
  "run.implementation": "scan",
  "run.compute_dtype": "bfloat16",
  "run.param_dtype": "bfloat16",
  "model.kv_heads": 1,
  "model.width_base": 8,
  "infini.gate": "hard_sigmoid",
  "infini.decay": 0.9,
  "compressive.compression": "mean",
  "memorizing.knn_layers": (2,),
  "memorizing.gate": "hard_sigmoid",
  "memorizing.gate_init": 1.0,
  "infini.write_penalty": 0.1,
  "infini.adapter_rank": 2,
  "gated_delta.rule": "linear",
  "gated_delta.gate": "hard_sigmoid",
  "gated_delta.gate_init": 1.0,
  "gated_delta.decay": 0.9,
  "gated_delta.write_penalty": 0.1,
  "gated_delta.adapter_rank": 2,
  "task.name": "recall",
  "task.pairs": 3,
  "task.curriculum_steps": 50,
  "needle.family": "multivalue",
  "needle.facts": 2,
  "task.min_segments": 2,
  "task.span": 6,
  "task.late": 0.9,
  "guard.in_a_row": 0,
  "guard.spike": 3.0,
  "warm.share": 0.9,
  "warm.filler": 1.0,
  "task.text_lanes": 2,
  "warm.start_step": 4,
  "optimizer.name": "adafactor",
  "optimizer.schedule": "linear",
  "optimizer.decay_shape": "linear",
  "optimizer.momentum": 0.8,
  "optimizer.ema": 0.9,
  "weight_decay.vectors": 1.0,
  "weight_decay.gates": 1.0,
  "optimizer.b1": 0.8,
  "optimizer.b2": 0.9,
  "optimizer.final_fraction": 0.3,
  "train.distill_weight": 0.5,
  "train.part": "attention",
  "train.rollout": (8,),
  "train.seed": 7,
  "train.z_loss": 0.1,
  "train.loss_chunk": 8,
  "mesh.data": 4,
  "mesh.fsdp": 2,
  "mesh.tensor": 2,
  "mesh.seq": 2,
  "mesh.dcn": 2,
}
# Fields that have an effect only for one task, or with warm memories.
TASK = {"data": {"tokenizer": "task", "carry_state": False, "segments": 6}}
RECALL = {
  **TASK,
  "task": {
    "name": "recall",
    "pairs": 2,
    "distinct_keys": 8,
    "distinct_values": 8,
    "min_segments": 1,
  },
}
PASSKEY = {**TASK, "task": {"name": "passkey", "min_segments": 5}}
needle = lambda **fields: {
  "model": {"segment_length": 256},
  "data": {"carry_state": False},
  "task": {"name": "needle"},
  "needle": {"needles": 2, **fields},
}
MULTIKEY, CHAIN, FACTS = (
  needle(family="multikey"),
  needle(family="variables", hops=2),
  needle(family="facts"),
)
WARM = {
  "data": {"carry_state": False},
  "warm": {"share": 0.5, "segments": 1, "min_tokens": 20, "max_tokens": 90},
}
BESIDE = {
  "model": {"segment_length": 128},
  "data": {"carry_state": False, "path": "four documents"},
  "task": {"name": "passkey", "text_lanes": 1},
}
KNN = {
  "model": {"mixer": "memorizing"},
  "memorizing": {"knn_layers": (1,), "knn_memory": 16, "knn_top": 2},
}
SUMMARY = {
  "model": {"mixer": "autocompressor"},
  "autocompressor": {"summary_tokens": 2, "summary_steps": 2},
}
WSD = {"optimizer": {"schedule": "wsd", "decay_steps": 2}}
GATED_DELTA = {"model": {"mixer": "gated_delta"}}
RMT = {"model": {"mixer": "rmt"}, "rmt": {"summary_tokens": 2}}
OLD = {
  "model": {"mixer": "compressive"},
  "compressive": {"compression_rate": 2, "compressed_memory": 4},
}
of = lambda section: [
  f"{section}.{f.name}" for f in dataclasses.fields(config_lib.SECTIONS[section])
]
LIVE_IN = {
  **dict.fromkeys(of("autocompressor"), SUMMARY),
  **dict.fromkeys(of("rmt"), RMT),
  **dict.fromkeys(of("gated_delta"), GATED_DELTA),
  **dict.fromkeys(of("compressive"), OLD),
  **dict.fromkeys(of("memorizing"), KNN),
  "infini.z_correction": {"infini": {"rule": "delta"}},
  "infini.write_penalty": {"infini": {"write_gate": True}},
  "gated_delta.write_penalty": {**GATED_DELTA, "gated_delta": {"write_gate": True}},
  "adapters.alpha": {"adapters": {"rank": 2}},
  "train.distill_weight": {"train": {"start_from": "RUN"}},
  "train.rollout": {"train": {"rollout_steps": 2}},
  "train.rollout_steps": {"train": {"rollout": (8,), "rollout_steps": 2}},
  **dict.fromkeys(("task.digits", "task.late", "task.repeat_weight"), PASSKEY),
  **{f"task.{name}": RECALL for name in "pairs distinct_keys distinct_values span min_segments"
     " curriculum_steps context_weight".split()},
  **dict.fromkeys(("needle.family", "needle.needles", "needle.digits"), MULTIKEY),
  **{"needle.hops": CHAIN, "needle.facts": FACTS},
  "task.name": PASSKEY,
  **dict.fromkeys(("task.text_lanes", "task.text_weight"), BESIDE),
  "guard.horizon": {"guard": {"spike": 3.0}},
  **dict.fromkeys(("optimizer.decay_steps", "optimizer.decay_shape"), WSD),
  "optimizer.momentum": {"optimizer": {"name": "muon"}},
  **{f"warm.{f.name}": WARM for f in dataclasses.fields(config_lib.WarmConfig)},
  "warm.weight": {**PASSKEY, "warm": WARM["warm"]},
  "warm.filler": {**PASSKEY, "warm": WARM["warm"]},
}  # fmt: skip
FIELDS = [
  f"{section}.{field.name}"
  for section, schema in config_lib.SECTIONS.items()
  for field in dataclasses.fields(schema)
]


class Corpus(Store):
  """Four documents without files."""

  def __init__(self):
    pass

  tokenizer = ByteTokenizer()
  fingerprint = "four documents"

  def split(self, name):
    return Documents()


class Documents:
  tokens = np.array([40, 50, 60, 70])

  def read(self, document, start, stop):
    return np.arange(start, stop, dtype=np.int32) + 100 * document


# Most fields are in no argument of these two. Each program is traced and printed once.
@functools.cache
def start_of(model, mesh):
  """The program that makes the parameters, as text."""
  with jax.set_mesh(mesh):
    return str(jax.make_jaxpr(lambda key: init(model, key))(jax.random.key(0)))


@functools.cache
def loss_of(model, mesh, tokens, chunk):
  """The program of the loss, as text."""

  def score(params, tokens_BT):
    bound = bind(model, params)
    hidden_BTD, state = bound(tokens_BT, bound.state(len(tokens_BT)))
    options = {"chunk": chunk, "softcap": model.family.logit_softcap}
    ones_BT = jnp.ones(tokens_BT.shape)
    return weighted_loss(hidden_BTD, bound.head(), tokens_BT, ones_BT, **options), state

  with jax.set_mesh(mesh):
    return str(jax.make_jaxpr(score)(abstract_params(model, mesh), tokens))


class Observed:
  """What a run of this config computes, in parts. Each part is made at its first use."""

  def __init__(self, c):
    self.config = c
    self.part = functools.cache(self._part)

  @functools.cached_property
  def mesh(self):
    data = self.config.mesh.data
    return make_mesh(self.config.mesh, jax.devices()[: 8 if data in (8, -1) else 4])

  @functools.cached_property
  def batches(self):
    c = self.config
    filler = Corpus() if c.task.name == "needle" else None
    source = Corpus() if c.task.name == "text" else make_task(c, c.task.name, filler=filler)
    if c.task.text_lanes:
      source = TaskAndText(source, Corpus())
    lanes = train_lanes(c, source)
    return [lanes.batch(k) for k in (0, 3, 5)]

  @functools.cached_property
  def start(self):
    """The program that makes the parameters."""
    return start_of(self.config.model, self.mesh)

  @functools.cached_property
  def loss(self):
    """The program of the loss: the cheap half of an update."""
    name = "tokens_BT"
    tokens = abstract_batch({name: self.batches[0][name]}, self.mesh)[name]
    return loss_of(self.config.model, self.mesh, tokens, self.config.train.loss_chunk)

  @functools.cached_property
  def update(self):
    """The program of the optimizer alone."""
    tx = make_optimizer(self.config)
    with jax.set_mesh(self.mesh):
      params = abstract_params(self.config.model, self.mesh)
      trained, _ = split(self.config, params)
      make = lambda grads, params: tx.update(grads, tx.init(params), params)
      return jax.make_jaxpr(make)(trained, trained)

  @functools.cached_property
  def step(self):
    """The program of an update, and the shardings of its arrays."""
    tx, first = make_optimizer(self.config), stage_at(self.config, 0).config
    with jax.set_mesh(self.mesh):
      state = abstract_state(self.config, tx, self.mesh)
      shapes = abstract_batch(self.batches[0], self.mesh)
      arguments = (state, shapes, *abstract_teacher(first, self.mesh))
      return jax.make_jaxpr(make_train_step(first, tx))(*arguments)

  def _part(self, name):
    """A part as text. The cheap parts come first in `PARTS`."""
    part = getattr(self, name)
    if name in ("mesh", "batches"):
      part = dict(part.shape) if name == "mesh" else jax.tree.map(np.ndarray.tolist, part)
    return re.sub(r"0x[0-9a-f]+", "", str(part))


PARTS = ("mesh", "batches", "loss", "start", "update", "step")


def differ(a, b):
  """Whether two configs compute different things. The update is traced if all else is equal.

  The loss shows most fields, so it comes before the other programs.
  """
  return any(a.part(name) != b.part(name) for name in PARTS)


def merged(*parts):
  """The sections of several experiments together, in a fixed order: they become names of tests."""
  names = dict.fromkeys(name for part in parts for name in part)
  return {name: {k: v for part in parts for k, v in part.get(name, {}).items()} for name in names}


@functools.cache
def plain(name):
  """The observation before the field is changed."""
  return Observed(config(**merged({"mesh": {"data": 4}}, LIVE_IN.get(name, {}))))


def test_what_is_observed_does_not_vary_by_itself():
  assert not differ(Observed(plain("").config), plain(""))


def changed(name):
  """Another value of a field, in the experiment of `LIVE_IN`."""
  section, field = name.split(".")
  same = next((n for n, sections in LIVE_IN.items() if sections is LIVE_IN.get(name)), "")
  old = getattr(plain(same).config.sections()[section], field)
  return ANOTHER.get(name, not old if isinstance(old, bool) else old * 2)


@pytest.mark.parametrize("name", [f for f in FIELDS if f not in SEEN_ELSEWHERE])
def test_every_field_is_live(name):
  section, field = name.split(".")
  live_in = LIVE_IN.get(name, {})
  same = next((n for n, sections in LIVE_IN.items() if sections is live_in), "")
  before, new = plain(same), changed(name)
  if name == "mesh.data":
    new, rest = 8, {}
  elif section == "mesh":
    rest = {"data": 4 // new}
  else:
    rest = {"data": 4}
  other = Observed(config(**merged({"mesh": rest}, live_in, {section: {field: new}})))
  assert differ(other, before), f"config.{name}={new!r} changes nothing: a dead field"


@pytest.mark.parametrize("name", [f for f in FIELDS if f not in SEEN_ELSEWHERE])
def test_a_field_that_is_live_only_with_others_is_named_without_them(name):
  """`LIVE_IN` knows what a field needs, from the program; `where` says it, and nothing more."""
  section, field = name.split(".")

  usual = getattr(config_lib.SECTIONS[section](), field)
  other = changed(name) if changed(name) != usual else usual * 2

  def line(sections):
    given = merged(sections, {section: {field: other}})
    try:
      c = config(**given)
    except InputError as error:  # refused is named too
      return str(error)
    return unread(given, c, [(section, field)])

  live_in = LIVE_IN.get(name, {})
  assert line(live_in) is None or section == "mesh"
  alone = line({})
  if live_in and name not in ("task.name", "task.text_lanes", "warm.share"):  # these turn it on
    assert f"config.{name}" in (alone or ""), "it has no effect, and no line says so"


def test_the_list_of_exceptions_is_of_real_fields():
  assert set(SEEN_ELSEWHERE) <= set(FIELDS) and set(ANOTHER) <= set(FIELDS)
  assert not set(SEEN_ELSEWHERE) & (set(ANOTHER) | set(LIVE_IN)) and set(LIVE_IN) <= set(FIELDS)
