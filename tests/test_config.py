"""The schema: every field does something, every mistake is named with its remedy."""

import dataclasses
import functools
import importlib.util
import json
import re

import jax
import numpy as np
import pytest

from infini_jax import config as config_lib
from infini_jax.cli import load_config
from infini_jax.config import Config, InputError, base_config, difference, from_json, resolve
from infini_jax.data import Store, make_task, train_lanes
from infini_jax.data.tokenizers import ByteTokenizer
from infini_jax.models import init
from infini_jax.parallel import abstract_batch, make_mesh
from infini_jax.training.optimizer import make_optimizer
from infini_jax.training.step import abstract_state, make_train_step
from tests.tiny import config

# Fields that the traced program cannot show, and the tests that show them.
SEEN_ELSEWHERE = {
  "data.path": "tests/test_cli.py: each corpus is another path",
  "data.tokenizer": "tests/data: open_or_prepare",
  "train.start_from": "tests/training/test_start.py",
  "task.filler": "tests/data/test_needles.py: a run is asked in any text",
  "train.log_every": "tests/training/test_loop.py: sparse logging",
  "train.eval_every": "tests/training/test_loop.py: validation during training",
  "train.eval_documents": "tests/training/test_loop.py: validation during training",
  "train.checkpoint_every": "tests/training/test_loop.py: the checkpoints that are kept",
  "train.compilation_cache": "tests/test_cli.py: a second run finds the first one's programs",
  "model.attention": "tests/ops/test_kernels.py: what each name chooses, and refuses",
  "train.keep_checkpoints": "tests/training/test_loop.py: the checkpoints that are kept",
  "train.tensorboard": "tests/training/test_loop.py: validation and sparse logging",
  "train.wandb": "a package that is not installed here; its absence is refused, below",
  "train.profile_start": "tests/training/test_loop.py: profile",
  "train.profile_steps": "tests/training/test_loop.py: profile",
  "data.prefetch": "tests/data/test_loader.py: by design it changes no batch",
  "evaluation.split": "tests/evaluation/test_evaluate.py: an earlier step, validation",
  "evaluation.lanes": "tests/evaluation/test_perplexity.py: by design it changes no total",
  "evaluation.segments": "tests/evaluation/test_perplexity.py: by design it changes no total",
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
  "model.mixer": "local",
  "model.rule": "delta",
  "model.gate_init": 1.0,
  "model.activation": "gelu",
  "model.remat": "dots",
  "model.implementation": "scan",
  "model.compute_dtype": "bfloat16",
  "model.param_dtype": "bfloat16",
  "model.kv_heads": 1,
  "model.gate": "hard_sigmoid",
  "model.decay": 0.9,
  "model.compression": "mean",
  "model.knn_layers": (2,),
  "task.name": "recall",
  "task.pairs": 3,
  "task.curriculum_steps": 50,
  "task.family": "multivalue",
  "task.facts": 2,
  "task.min_segments": 2,
  "warm.share": 0.9,
  "warm.start_step": 4,
  "optimizer.name": "adafactor",
  "optimizer.b1": 0.8,
  "optimizer.b2": 0.9,
  "optimizer.final_fraction": 0.3,
  "train.seed": 7,
  "train.z_loss": 0.1,
  "train.loss_chunk": 8,
  "mesh.data": 4,
  "mesh.fsdp": 2,
  "mesh.tensor": 2,
  "mesh.seq": 2,
  "mesh.dcn": 2,
}
# Fields that say something only of one task, or once memories start warm.
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
needle = lambda **task: {
  "model": {"segment_length": 256},
  "data": {"carry_state": False},
  "task": {"name": "needle", "needles": 2, **task},
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
KNN = {
  "model": {"mixer": "memorizing", "knn_layers": (1,), "knn_memory": 16, "knn_top": 2},
}
SUMMARY = {
  "model": {"mixer": "autocompressor", "summary_tokens": 2, "summary_steps": 2},
}
OLD = {"model": {"mixer": "compressive", "compression_rate": 2, "compressed_memory": 4}}
LIVE_IN = {
  **dict.fromkeys(
    ("model.summary_tokens", "model.summary_steps", "model.segment_jitter"), SUMMARY
  ),
  **dict.fromkeys(
    ("model.compression", "model.compression_rate", "model.compressed_memory"), OLD
  ),
  **dict.fromkeys(("model.knn_layers", "model.knn_memory", "model.knn_top"), KNN),
  "model.z_correction": {"model": {"rule": "delta"}},
  **dict.fromkeys(("task.digits", "task.repeat_weight"), PASSKEY),
  **{f"task.{name}": RECALL for name in "pairs distinct_keys distinct_values min_segments"
     " curriculum_steps context_weight".split()},
  **{"task.family": MULTIKEY, "task.needles": MULTIKEY, "task.hops": CHAIN, "task.facts": FACTS},
  "task.name": PASSKEY,
  **{f"warm.{f.name}": WARM for f in dataclasses.fields(config_lib.WarmConfig)},
  "warm.weight": {**PASSKEY, "warm": WARM["warm"]},
}  # fmt: skip
FIELDS = [
  f"{section}.{field.name}"
  for section, schema in config_lib.SECTIONS.items()
  for field in dataclasses.fields(schema)
]


class Corpus(Store):
  """Four documents, and no files."""

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


def observe(c):
  """What a run of this config would compute: the programs, where arrays lie, the batches' order."""
  mesh = make_mesh(c.mesh, jax.devices()[: 8 if c.mesh.data in (8, -1) else 4])
  tx = make_optimizer(c)
  filler = Corpus() if c.task.name == "needle" else None
  source = Corpus() if c.task.name == "text" else make_task(c, c.task.name, filler=filler)
  lanes = train_lanes(c, source)
  batches = [lanes.batch(k) for k in (0, 3, 5)]
  with jax.set_mesh(mesh):
    start = jax.make_jaxpr(lambda key: init(c.model, key))(jax.random.key(0))
    state = abstract_state(c, tx, mesh)
    shapes = abstract_batch(batches[0], mesh)
    step = jax.make_jaxpr(make_train_step(c, tx))(state, shapes)
  text = f"{start}\n{step}\n{dict(mesh.shape)}\n{jax.tree.map(np.ndarray.tolist, batches)}"
  return re.sub(r"0x[0-9a-f]+", "", text)


def merged(*parts):
  """Sections of several experiments in one, in a fixed order: they become names of tests."""
  names = dict.fromkeys(name for part in parts for name in part)
  return {name: {k: v for part in parts for k, v in part.get(name, {}).items()} for name in names}


@functools.cache
def plain(name):
  """What is seen before the field is changed."""
  c = config(**merged({"mesh": {"data": 4}}, LIVE_IN.get(name, {})))
  return c, observe(c)


def test_what_is_observed_does_not_vary_by_itself():
  c, seen = plain("")
  assert observe(c) == seen


@pytest.mark.parametrize("name", [f for f in FIELDS if f not in SEEN_ELSEWHERE])
def test_every_field_is_live(name):
  section, field = name.split(".")
  live_in = LIVE_IN.get(name, {})
  same = next((n for n, sections in LIVE_IN.items() if sections is live_in), "")
  before, seen = plain(same)
  old = getattr(getattr(before, section), field)
  new = ANOTHER.get(name, not old if isinstance(old, bool) else old * 2)
  if name == "mesh.data":
    new, rest = 8, {}
  elif section == "mesh":
    rest = {"data": 4 // new}
  else:
    rest = {"data": 4}
  changed = config(**merged({"mesh": rest}, live_in, {section: {field: new}}))
  assert observe(changed) != seen, f"config.{name}={new!r} changes nothing: a dead field"


def test_the_list_of_exceptions_is_of_real_fields():
  assert set(SEEN_ELSEWHERE) <= set(FIELDS) and set(ANOTHER) <= set(FIELDS)
  assert not set(SEEN_ELSEWHERE) & (set(ANOTHER) | set(LIVE_IN)) and set(LIVE_IN) <= set(FIELDS)


def test_defaults_resolve_and_are_locked():
  base = base_config()
  assert resolve(base) == Config()
  with pytest.raises((AttributeError, KeyError), match="wdth"):
    base.model.wdth = 3
  with pytest.raises(TypeError):
    base.model.width = "3"
  assert dataclasses.is_dataclass(resolve(base))
  with pytest.raises(dataclasses.FrozenInstanceError):
    resolve(base).model.width = 3


def test_json_and_back():
  c = config("somewhere", model={"rule": "delta"}, optimizer={"eps": 1e-9})
  assert from_json(c.to_json()) == c
  assert json.loads(c.to_json())["model"]["rule"] == "delta"


@pytest.mark.parametrize(
  "sections,message",
  [
    ({"modle": {}}, "config.modle: no such section; did you mean 'model'?"),
    ({"zzz": {}}, "config.zzz: no such section; there are model, data"),
    ({"model": {"widht": 3}}, "config.model.widht: no such field; did you mean 'width'?"),
    ({"model": 3}, "config.model=3: a section of fields is expected"),
    ({"model": {"width": 3.0}}, "config.model.width=3.0: expected int"),
    ({"model": {"width": True}}, "config.model.width=True: expected int"),
    ({"model": {"qk_norm": 1}}, "config.model.qk_norm=1: expected bool"),
    ({"data": {"path": None}}, "config.data.path=None: expected str"),
    ({"optimizer": {"b1": "0.9"}}, "config.optimizer.b1='0.9': expected float"),
    ({"model": {"mixer": "infinite"}}, "choose one of infini, local, full"),
    ({"model": {"rule": "sum"}}, "choose one of linear, delta"),
    ({"model": {"activation": "relu"}}, "choose one of swiglu, gelu"),
    ({"model": {"remat": "some"}}, "choose one of"),
    ({"model": {"implementation": "fast"}}, "choose one of auto, scan, parallel"),
    ({"model": {"compute_dtype": "float16"}}, "choose one of float32, bfloat16"),
    ({"model": {"param_dtype": "float16"}}, "choose one of float32, bfloat16"),
    ({"optimizer": {"name": "sgd"}}, "choose one of adamw, adafactor"),
    ({"evaluation": {"split": "dev"}}, "choose one of train, validation, test"),
    ({"model": {"layers": 0}}, "config.model.layers=0: must be more than 0"),
    ({"data": {"lanes": -8}}, "config.data.lanes=-8: must be more than 0"),
    ({"optimizer": {"learning_rate": 0.0}}, "config.optimizer.learning_rate=0.0: must be more"),
    ({"train": {"seed": -1}}, "config.train.seed=-1: must be 0 or more"),
    ({"optimizer": {"weight_decay": -0.1}}, "config.optimizer.weight_decay=-0.1: must be 0 or"),
    ({"evaluation": {"input_tokens": 600}}, "segment_length=256: set it to 512"),
    ({"evaluation": {"max_tokens": -1}}, "config.evaluation.max_tokens=-1: must be 0 or more"),
    ({"model": {"heads": 4, "kv_heads": 3}}, "config.model.heads=4 is not a multiple of"),
    ({"model": {"head_dim": 7}}, "config.model.head_dim=7: rotary positions turn pairs"),
    ({"train": {"accumulate": 3}}, "config.data.lanes=8 is not a multiple of"),
    ({"model": {"mixer": "full"}}, "set config.data.carry_state=False"),
    ({"model": {"mixer": "memorizing"}}, "there is no layer 9; they are counted from 1 to config"),
    ({"model": {"mixer": "memorizing", "knn_layers": (0,)}}, "there is no layer 0; they are count"),
    ({"model": {"knn_top": 0}}, "config.model.knn_top=0: must be more than 0"),
    (
      {"model": {"mixer": "compressive", "compression_rate": 3}},
      "config.model.compression_rate=3 does not divide config.model.segment_length=",
    ),
    ({"model": {"compression": "max"}}, "config.model.compression='max': choose one of conv, mean"),
    ({"model": {"gate": "softmax"}}, "choose one of sigmoid, hard_sigmoid"),
    ({"model": {"gate": "hard_sigmoid", "gate_init": -5.0}}, "set gate_init to -2.9 to adapt"),
    ({"model": {"segment_jitter": 1.0}}, "must be below 1, or a segment may be empty"),
    ({"model": {"decay": 0.0}}, "config.model.decay=0.0: must be above 0, and at most 1"),
    ({"model": {"decay": 1.5}}, "config.model.decay=1.5: must be above 0, and at most 1"),
    ({"model": {"z_correction": True}}, "set config.model.rule='delta'"),
    ({"warm": {"start_step": -1}}, "config.warm.start_step=-1: must be 0 or more"),
    ({"task": {"name": "sorting"}}, "choose one of text, passkey, recall"),
    ({"task": {"family": "hay"}}, "config.task.family='hay': choose one of single, multikey"),
    ({"task": {"needles": 0}}, "config.task.needles=0: must be more than 0"),
    ({"task": {"needles": 33}}, "config.task.needles=33: choose 1 to 32"),
    ({"task": {"hops": 33}}, "config.task.hops=33: choose 1 to 32"),
    ({"task": {"facts": 3}}, "config.task.facts=3: choose 1 to 2"),
    (
      {"task": {"name": "needle"}, "data": {"carry_state": False, "tokenizer": "task"}},
      "config.data.tokenizer='task' needs config.task.name='passkey' or 'recall'",
    ),
    (
      {"task": {"name": "passkey"}},
      "passkey': its examples do not go on from step to step; set con",
    ),
    ({"task": {"pairs": 65}}, "config.task.pairs=65 is more than config.task.distinct_keys=64"),
    ({"task": {"digits": 0}}, "config.task.digits=0: must be more than 0"),
    ({"task": {"context_weight": -1.0}}, "config.task.context_weight=-1.0: must be 0 or more"),
    (merged(TASK, {"task": {"name": "recall", "min_segments": 7}}), "min_segments=7 is more than"),
    ({"data": {"tokenizer": "task"}}, "needs config.task.name='passkey' or 'recall'"),
    ({"warm": {"share": 1.5}}, "config.warm.share=1.5: a probability, at most 1"),
    ({"warm": {"share": -0.5}}, "config.warm.share=-0.5: must be 0 or more"),
    ({"warm": {"min_tokens": 9, "max_tokens": 8}}, "config.warm.max_tokens=8: swap them"),
    (
      {"warm": {"share": 0.5}, "model": {"mixer": "full"}, "data": {"carry_state": False}},
      "config.warm.share with config.model.mixer='full': its state grows; set it 0",
    ),
    ({"evaluation": {"task": "copy"}}, "config.evaluation.task='copy': choose one of text, passk"),
    ({"evaluation": {"knock_out": ("all",)}}, "knock_out='all': choose one of empty, reads, layer"),
    ({"evaluation": {"depths": (0.5, 1.1)}}, "depths: 1.1 is outside 0 (start) to 1 (end)"),
    ({"evaluation": {"depths": [-0.1]}}, "depths: -0.1 is outside 0 (start) to 1 (end)"),
    ({"evaluation": {"lengths": (0,)}}, "lengths: 0 is no number of tokens: give 1 or more"),
    ({"evaluation": {"lengths": ()}}, "config.evaluation.lengths=(): nothing to evaluate"),
    ({"evaluation": {"depths": ()}}, "config.evaluation.depths=(): nothing to evaluate"),
    ({"evaluation": {"lengths": (9, "b")}}, "lengths=(9, 'b'): expected several int"),
    ({"evaluation": {"lengths": (9, True)}}, "lengths=(9, True): expected several int"),
    ({"evaluation": {"lengths": 0.5}}, "lengths=(0.5,): expected several int"),
    ({"evaluation": {"depths": "0.5"}}, "depths=('0.5',): expected several float"),
    ({"mesh": {"fsdp": 0}}, "config.mesh.fsdp=0: must be at least 1"),
    ({"mesh": {"tensor": -1}}, "config.mesh.tensor=-1: must be at least 1"),
    ({"mesh": {"seq": 0}}, "config.mesh.seq=0: must be at least 1"),
    (
      {"mesh": {"seq": 2}, "model": {"mixer": "full"}, "data": {"carry_state": False}},
      "config.mesh.seq=2 with config.model.mixer='full': its tokens see those of other segments",
    ),
    (
      {"mesh": {"seq": 2}, "model": {"mixer": "transformer_xl"}},
      "mixer='transformer_xl': its tokens see those of other segments; set config.mesh.seq=1",
    ),
    (
      {"mesh": {"seq": 2}, "model": {"implementation": "scan"}},
      "implementation='scan': segments that wait for each other; set config.model.implementation=",
    ),
    (
      {"mesh": {"seq": 2}, "model": {"rule": "delta", "z_correction": True}},
      "z_correction=True: each token needs z; set config.mesh.seq=1",
    ),
    ({"model": {"attention": "flash"}}, "config.model.attention='flash': choose one of auto"),
    ({"mesh": {"data": 0}}, "config.mesh.data=0: must be at least 1, or -1"),
    ({"mesh": {"data": -2}}, "config.mesh.data=-2: must be at least 1, or -1"),
  ],
  ids=str,
)
def test_every_mistake_is_one_line_with_its_remedy(sections, message):
  with pytest.raises(InputError) as error:
    resolve(sections)
  assert message in str(error.value) and "\n" not in str(error.value)


def test_a_missing_package_is_named(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(InputError, match=r"wandb=True needs .*pip install"):
    config(train={"wandb": True})


def test_whole_numbers_are_taken_for_floats():
  value = resolve({"optimizer": {"learning_rate": 1}}).optimizer.learning_rate
  assert value == 1.0 and isinstance(value, float)


def test_several_values_are_tuples_whatever_they_were_written_as(tmp_path):
  e = resolve(
    {"evaluation": {"lengths": [512, 64], "depths": [0, 0.5], "knock_out": []}}
  ).evaluation
  assert (e.lengths, e.depths, e.knock_out) == ((512, 64), (0.0, 0.5), ())
  assert all(isinstance(depth, float) for depth in e.depths)
  assert resolve({"evaluation": {"lengths": 7}}).evaluation.lengths == (7,)
  c = config(evaluation={"depths": (0.25,), "knock_out": ("reads", "layers")})
  assert from_json(c.to_json()) == c and difference(c, from_json(c.to_json())) is None

  file = tmp_path / "config.py"
  file.write_text("from infini_jax.config import base_config as get_config\n")
  fields = ("lengths=(512,1024)", "depths=(0,0.5)", "knock_out=('reads','empty')")
  loaded = load_config([f"--config={file}", *(f"--config.evaluation.{field}" for field in fields)])
  e = loaded.evaluation
  assert (e.lengths, e.depths) == ((512, 1024), (0.0, 0.5)) and e.knock_out == ("reads", "empty")
  one = load_config([f"--config={file}", "--config.evaluation.lengths=(77,)"])
  assert one.evaluation.lengths == (77,)
  for wrong in ("lengths=(1,'b')", "lengths=x", "depths=(2.0,)"):
    with pytest.raises(InputError) as error:
      load_config([f"--config={file}", f"--config.evaluation.{wrong}"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", FIELDS)
def test_difference_names_what_makes_another_run(name):
  """A run may go on with other devices, schedules of writing, and evaluations, nothing else."""
  section, field = name.split(".")
  old = Config()
  value = getattr(getattr(old, section), field)
  new = dataclasses.replace(
    old, **{section: dataclasses.replace(getattr(old, section), **{field: ("other", value)})}
  )
  free = {"data.path", "data.prefetch", "model.remat", "model.implementation", "model.attention"}
  free |= {f for f in FIELDS if f.startswith(("evaluation.", "mesh.", "train."))}
  free |= {f"task.{f}" for f in ("family", "needles", "hops", "facts", "filler")}
  free -= {"train.seed", "train.z_loss"}
  found = difference(old, new)
  if name in free:
    assert found is None, f"config.{name} may change when a run goes on"
  else:
    assert found is not None and found.startswith(f"config.{name}: {value!r} there")
  assert difference(old, old) is None


def test_no_field_hides_behind_a_method_of_the_config():
  """A ConfigDict has methods; a field of such a name could be set nowhere but in a dict."""
  import ml_collections

  methods = set(dir(ml_collections.ConfigDict))
  assert not {field.split(".")[1] for field in FIELDS} & methods, "rename the field"
