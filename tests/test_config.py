"""The schema: every mistake is named with its remedy; fields that make another run."""

import dataclasses
import importlib.util
import json

import pytest

from infini_jax import config as config_lib
from infini_jax.cli import load_config
from infini_jax.config import (
  SYSTEMS,
  Config,
  InputError,
  base_config,
  difference,
  from_json,
  resolve,
)
from infini_jax.rules import GATES, RULES
from tests.tiny import config

FIELDS = [
  f"{section}.{field.name}"
  for section, schema in config_lib.SECTIONS.items()
  for field in dataclasses.fields(schema)
]

WINDOWS = [name for name, system in SYSTEMS.items() if system.windows]


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
  assert json.loads(c.to_json())["infini"]["rule"] == "delta"


@pytest.mark.parametrize(
  "sections,message",
  [
    ({"modle": {}}, "config.modle: no such section; did you mean 'model'?"),
    ({"zzz": {}}, "config.zzz: no such section; there are model, family"),
    ({"model": {"widht": 3}}, "config.model.widht: no such field; did you mean 'width'?"),
    ({"model": 3}, "config.model=3: a section of fields is expected"),
    ({"model": {"width": 3.0}}, "config.model.width=3.0: expected int"),
    ({"model": {"width": True}}, "config.model.width=True: expected int"),
    ({"family": {"qk_norm": 1}}, "config.family.qk_norm=1: expected bool"),
    ({"data": {"path": None}}, "config.data.path=None: expected str"),
    ({"optimizer": {"b1": "0.9"}}, "config.optimizer.b1='0.9': expected float"),
    ({"model": {"mixer": "infinite"}}, f"choose one of {', '.join(SYSTEMS)}"),
    ({"infini": {"rule": "sum"}}, f"choose one of {', '.join(RULES)}"),
    ({"model": {"activation": "relu"}}, "choose one of swiglu, geglu, gelu"),
    ({"optimizer": {"learning_rate": float("nan")}}, "learning_rate=nan: must be a finite number"),
    ({"family": {"rope_scaling": (float("inf"),)}}, "(inf,): must be a finite number"),
    ({"family": {"embed_scale": 0.0}}, "config.family.embed_scale=0.0: must be more than 0"),
    ({"family": {"window": -1}}, "config.family.window=-1: must be 0 or more"),
    (
      {"model": {"width": 64, "width_base": 128}},
      "config.model.width_base=128 is more than config.model.width=64: it is the width of a",
    ),
    (
      {"model": {"width_base": 64}, "optimizer": {"name": "adafactor"}},
      "config.model.width_base=64 with config.optimizer.name='adafactor': how its rate changes",
    ),
    (
      {"family": {"rope_scaling": (8.0, 1.0)}},
      "rope_scaling=(8.0, 1.0): give (factor,), or (factor",
    ),
    ({"family": {"rope_scaling": (0.0,)}}, "config.family.rope_scaling=(0.0,): give (factor,), or"),
    ({"family": {"rope_scaling": (8, 4, 1, 99)}}, "its low=4.0 must be below high=1.0"),
    (
      {"family": {"global_every": 6}},
      "global_every=6 without a window: set config.family.window, or",
    ),
    ({"family": {"global_nope": True}}, "global_every=0: no layer is global; set config.family.g"),
    (
      {"family": {"window_theta": 10000.0}},
      "window_theta=10000.0 without a window: set config.family.",
    ),
    (
      {"family": {"window": 128}},
      "segment_length=256 is more than config.family.window=128: set config.model.segment_length",
    ),
    (
      {"model": {"mixer": "rmt"}, "family": {"window": 512}},
      f"window=512 with config.model.mixer='rmt': only {', '.join(WINDOWS)} can do it",
    ),
    (
      {"run": {"attention": "cudnn"}, "family": {"attention_softcap": 50.0}},
      "attention_softcap=50.0: it cannot cap scores; set config.run.attention='auto'",
    ),
    ({"run": {"remat": "some"}}, "choose one of"),
    ({"run": {"implementation": "fast"}}, "choose one of auto, scan, parallel"),
    ({"run": {"compute_dtype": "float16"}}, "choose one of float32, bfloat16"),
    ({"run": {"param_dtype": "float16"}}, "choose one of float32, bfloat16"),
    ({"optimizer": {"name": "sgd"}}, "choose one of adamw, adafactor, muon, lion"),
    ({"optimizer": {"name": "soap"}}, "config.optimizer.name='soap': choose one of adamw, adaf"),
    ({"optimizer": {"schedule": "step"}}, "choose one of cosine, linear, constant, wsd"),
    ({"optimizer": {"decay_shape": "cubic"}}, "choose one of sqrt, linear, cosine"),
    ({"optimizer": {"decay_steps": 9}}, "schedule='cosine': only 'wsd' has them; set that, or"),
    (
      {"optimizer": {"schedule": "wsd"}},
      "decay_steps=0 with config.optimizer.schedule='wsd': give the steps of the decay, for "
      "example 200 of config.train.steps=1000; or set config.optimizer.schedule='constant'",
    ),
    (
      {"optimizer": {"schedule": "wsd", "decay_steps": 1001, "warmup_steps": 0}},
      "config.train.steps=1000: set config.optimizer.decay_steps to at most 1000, or train for lon",
    ),
    (
      {"optimizer": {"schedule": "wsd", "decay_steps": 901}},
      "decay_steps=901 and config.optimizer.warmup_steps=100 are more than config.train.steps=1000",
    ),
    ({"optimizer": {"ema": 1.0}}, "config.optimizer.ema=1.0: must be below 1, because at 1 the m"),
    ({"optimizer": {"ema": 1.5}}, "config.optimizer.ema=1.5: must be below 1, because at 1 the m"),
    ({"optimizer": {"ema": -0.1}}, "config.optimizer.ema=-0.1: must be 0 or more"),
    ({"optimizer": {"momentum": 1.0}}, "config.optimizer.momentum=1.0: must be below 1, because"),
    ({"weight_decay": {"gates": -1.0}}, "config.weight_decay.gates=-1.0: must be 0 or more"),
    ({"weight_decay": {"heads": 1.0}}, "config.weight_decay.heads: no such field"),
    ({"evaluation": {"split": "dev"}}, "choose one of train, validation, test"),
    ({"model": {"layers": 0}}, "config.model.layers=0: must be more than 0"),
    ({"data": {"lanes": -8}}, "config.data.lanes=-8: must be more than 0"),
    ({"optimizer": {"learning_rate": 0.0}}, "config.optimizer.learning_rate=0.0: must be more"),
    ({"train": {"seed": -1}}, "config.train.seed=-1: must be 0 or more"),
    ({"train": {"seed": 2**32}}, "config.train.seed=4294967296: must be at most 2147483647"),
    ({"evaluation": {"lengths": (9, 2**31)}}, "lengths=(9, 2147483648): must be at most 21474"),
    ({"optimizer": {"b1": 1.0}}, "config.optimizer.b1=1.0: must be below 1, because at 1 the mean"),
    ({"optimizer": {"b2": 1.5}}, "config.optimizer.b2=1.5: must be below 1, because at 1 the mean"),
    ({"optimizer": {"weight_decay": -0.1}}, "config.optimizer.weight_decay=-0.1: must be 0 or"),
    ({"evaluation": {"input_tokens": 600}}, "segment_length=256: set it to 512"),
    (
      {"evaluation": {"temperature": 1e-40}},
      "temperature=1e-40: must be 0 (greedy), or from 1e-15",
    ),
    ({"evaluation": {"max_tokens": -1}}, "config.evaluation.max_tokens=-1: must be 0 or more"),
    ({"model": {"heads": 4, "kv_heads": 3}}, "config.model.heads=4 is not a multiple of"),
    ({"model": {"head_dim": 7}}, "config.model.head_dim=7: rotary positions rotate pairs"),
    ({"train": {"accumulate": 3}}, "config.data.lanes=8 is not a multiple of"),
    ({"model": {"mixer": "full"}}, "set config.data.carry_state=False"),
    ({"model": {"pattern": ("infini", "ful")}}, "config.model.pattern='ful': choose one of infini"),
    (
      {"model": {"pattern": ("infini", "infini", "local")}},
      "its 3 layers do not divide config.model.layers=4; set config.model.layers=6, or a pattern",
    ),
    (
      {"model": {"pattern": ("infini", "rmt")}},
      "'rmt' cannot be some of the layers, because its memory is that of all layers together; "
      "set config.model.",
    ),
    (
      {"model": {"pattern": ("memorizing", "local")}},
      "'memorizing' cannot be some of the layers, because knn_layers chooses its layers",
    ),
    (
      {"model": {"pattern": ("infini", "full")}},
      "with config.model.pattern=('infini', 'full'): its state grows without end; set config.data.",
    ),
    (
      {
        "model": {"pattern": ("infini", "full")},
        "data": {"carry_state": False},
        "mesh": {"seq": 2},
      },
      "config.mesh.seq=2 with config.model.pattern=('infini', 'full'): 'full' layers: its tokens",
    ),
    (
      {
        "model": {"pattern": ("infini", "full")},
        "data": {"carry_state": False},
        "warm": {"share": 0.5},
      },
      "config.warm.share with config.model.pattern=('infini', 'full'): its state grows; set it 0",
    ),
    (
      {"model": {"pattern": ("infini", "gated_delta")}, "warm": {"share": 0.5, "growth": 2.0}},
      "growth=2.0 with config.model.pattern=('infini', 'gated_delta'): its state is no sum over",
    ),
    (
      {
        "model": {"pattern": ("infini", "full")},
        "data": {"carry_state": False},
        "evaluation": {"task": "summarization"},
      },
      "knock_out='empty' with config.model.pattern=('infini', 'full'): a summary without the",
    ),
    (
      {"model": {"pattern": ("local", "infini")}, "infini": {"decay": 2.0}},
      "config.infini.decay=2.0: must be above 0",
    ),
    (
      {"model": {"pattern": ("local", "local")}, "train": {"part": "gates"}},
      "part='gates' with config.model.pattern=('local', 'local'): it has no gates",
    ),
    (
      {"model": {"pattern": ("infini", "transformer_xl")}, "family": {"window": 512}},
      f"512 with config.model.pattern=('infini', 'transformer_xl'): only {', '.join(WINDOWS)} can",
    ),
    ({"model": {"mixer": "memorizing"}}, "there is no layer 9; they are counted from 1 to config"),
    (
      {"model": {"mixer": "memorizing"}, "memorizing": {"knn_layers": (0,)}},
      "there is no layer 0; they are count",
    ),
    ({"memorizing": {"knn_top": 0}}, "config.memorizing.knn_top=0: must be more than 0"),
    (
      {"model": {"mixer": "compressive"}, "compressive": {"compression_rate": 3}},
      "config.compressive.compression_rate=3 does not divide config.model.segment_length=",
    ),
    (
      {"compressive": {"compression": "max"}},
      "config.compressive.compression='max': choose one of conv, mean",
    ),
    ({"infini": {"gate": "softmax"}}, f"choose one of {', '.join(GATES)}"),
    ({"infini": {"gate": "hard_sigmoid", "gate_init": -5.0}}, "set gate_init to -2.9 to adapt"),
    ({"autocompressor": {"segment_jitter": 1.0}}, "segment_jitter=1.0: choose 0 to 0.99"),
    ({"infini": {"decay": 0.0}}, "config.infini.decay=0.0: must be above 0, and at most 1"),
    ({"infini": {"decay": 1.5}}, "config.infini.decay=1.5: must be above 0, and at most 1"),
    ({"infini": {"z_correction": True}}, "set config.infini.rule='delta'"),
    ({"adapters": {"rank": -1}}, "config.adapters.rank=-1: must be 0 or more"),
    ({"train": {"part": "head"}}, "config.train.part='head': choose one of all, gates, attention"),
    (
      {"train": {"part": "lora"}},
      "adapters.rank=0: there are no adapters; set config.adapters",
    ),
    (
      {"train": {"part": "gates"}, "model": {"mixer": "local"}},
      "config.model.mixer='local': it has no gates; set config.train.part='all'",
    ),
    ({"train": {"rollout": (64,)}}, "config.train.rollout_steps=0: give the steps of each"),
    (
      {"train": {"rollout": (64, 32), "rollout_steps": 9}},
      "rollout=(64, 32): its segments must grow, up to less than config.model.segment_length=256",
    ),
    ({"train": {"rollout": (256,), "rollout_steps": 9}}, "its segments must grow, up to less than"),
    ({"train": {"rollout": (1.5,)}}, "config.train.rollout=(1.5,): expected several int"),
    (
      {"train": {"rollout": (64, 128), "rollout_steps": 500}},
      "config.train.rollout=(64, 128): config.model.segment_length=256 comes after 1000 steps;",
    ),
    (
      {"train": {"rollout": (64,), "rollout_steps": 9}, "model": {"mixer": "transformer_xl"}},
      "its state depends on the segment's length; set config.train.rollout=()",
    ),
    (
      {"train": {"rollout": (64,), "rollout_steps": 9}, "task": {"curriculum_steps": 9}},
      "examples grow by one of them; set the other 0",
    ),
    ({"train": {"distill_weight": 1.0}}, "distill_weight=1.0 without config.train.start_from: set"),
    (
      {"train": {"distill_weight": 1.0, "start_from": "RUN"}, "mesh": {"seq": 2}},
      "the original's tokens see those of other segments; set config.mesh.seq=1",
    ),
    ({"warm": {"start_step": -1}}, "config.warm.start_step=-1: must be 0 or more"),
    ({"task": {"name": "sorting"}}, "choose one of text, passkey, recall"),
    ({"needle": {"family": "hay"}}, "config.needle.family='hay': choose one of single, multikey"),
    ({"needle": {"needles": 0}}, "config.needle.needles=0: choose 1 to 32"),
    ({"chat": {"too_long": "drop"}}, "config.chat.too_long='drop': choose one of refuse, cut"),
    (
      {"task": {"name": "chat"}, "warm": {"share": 0.5}},
      "config.warm.share with config.task.name='chat': set it 0",
    ),
    ({"needle": {"needles": 33}}, "config.needle.needles=33: choose 1 to 32"),
    ({"needle": {"hops": 33}}, "config.needle.hops=33: choose 1 to 32"),
    ({"needle": {"facts": 3}}, "config.needle.facts=3: choose 1 to 2"),
    (
      {"task": {"name": "needle"}, "data": {"carry_state": False, "tokenizer": "task"}},
      "config.data.tokenizer='task' needs config.task.name='passkey' or 'recall'",
    ),
    (
      {"task": {"name": "passkey"}},
      "passkey': its examples end within a step; set con",
    ),
    ({"task": {"pairs": 65}}, "config.task.pairs=65 is more than config.task.distinct_keys=64"),
    (
      {"task": {"span": 64}},
      "span=64: config.task.pairs=32 pairs do not fit into so few tokens; make it 65",
    ),
    ({"task": {"late": 1.5}}, "config.task.late=1.5: choose 0 to 1"),
    ({"task": {"span": -1}}, "config.task.span=-1: must be 0 or more"),
    ({"task": {"digits": 0}}, "config.task.digits=0: must be more than 0"),
    ({"task": {"context_weight": -1.0}}, "config.task.context_weight=-1.0: must be 0 or more"),
    (
      {
        "data": {"tokenizer": "task", "carry_state": False, "segments": 6},
        "task": {"name": "recall", "min_segments": 7},
      },
      "min_segments=7 is more than",
    ),
    ({"data": {"tokenizer": "task"}}, "needs config.task.name='passkey' or 'recall'"),
    (
      {"task": {"name": "text", "text_lanes": 1}},
      "config.task.text_lanes=1 with config.task.name='text': set it 0",
    ),
    (
      {"task": {"name": "passkey", "text_lanes": 8}, "data": {"carry_state": False}},
      "config.task.text_lanes=8 of config.data.lanes=8: leave lanes for the task",
    ),
    (
      {"task": {"name": "passkey", "text_lanes": 1}, "data": {"carry_state": False, "path": ""}},
      "config.task.text_lanes=1 without config.data.path: set it to a corpus",
    ),
    ({"warm": {"share": 1.5}}, "config.warm.share=1.5: choose 0 to 1"),
    ({"warm": {"share": -0.5}}, "config.warm.share=-0.5: choose 0 to 1"),
    ({"warm": {"min_tokens": 9, "max_tokens": 8}}, "config.warm.max_tokens=8: swap them"),
    ({"warm": {"growth": 0.9}}, "config.warm.growth=0.9: must be at least 1"),
    (
      {"warm": {"growth": 2.0}, "model": {"mixer": "rmt"}},
      "config.warm.growth=2.0 with config.model.mixer='rmt': its state is no sum",
    ),
    (
      {"warm": {"growth": 2.0}, "infini": {"decay": 0.9}},
      "with config.infini.decay=0.9: its",
    ),
    (
      {"warm": {"growth": 2.0}, "infini": {"rule": "delta", "z_correction": True}},
      "with config.infini.z_correction=True: its state",
    ),
    (
      {"warm": {"filler": 1.0}, "infini": {"decay": 0.9}},
      "config.warm.filler=1.0 with config.infini.decay=0.9: its state is no sum",
    ),
    (
      {"warm": {"filler": 1.0}, "infini": {"rule": "delta"}},
      "config.warm.filler=1.0 with config.infini.rule='delta': a token cannot be erased twice",
    ),
    (
      {"warm": {"filler": 1.0}, "infini": {"rule": "linear"}},
      "config.warm.filler=1.0 with config.task.name='text': only the examples of a task",
    ),
    (
      {
        "warm": {"filler": 1.0},
        "infini": {"rule": "linear"},
        "task": {"name": "passkey"},
        "data": {"carry_state": False},
      },
      "config.warm.filler=1.0 with config.warm.share=0: no example starts warm",
    ),
    (
      {"warm": {"share": 0.5}, "model": {"mixer": "full"}, "data": {"carry_state": False}},
      "config.warm.share with config.model.mixer='full': its state grows; set it 0",
    ),
    ({"evaluation": {"task": "copy"}}, "config.evaluation.task='copy': choose one of text, passk"),
    ({"evaluation": {"knock_out": ("all",)}}, "knock_out='all': choose one of empty, reads, layer"),
    (
      {"evaluation": {"knock_out": ("swap",), "lanes": 1}, "mesh": {"data": 1}},
      "knock_out='swap' with config.evaluation.lanes=1: no other document is read at the same time",
    ),
    (
      {"evaluation": {"knock_out": ("swap",), "task": "summarization"}},
      "knock_out='swap' with config.evaluation.task='summarization': a summary is written with",
    ),
    ({"evaluation": {"depths": (0.5, 1.1)}}, "config.evaluation.depths: 1.1: choose 0 to 1"),
    ({"evaluation": {"depths": [-0.1]}}, "config.evaluation.depths: -0.1: choose 0 to 1"),
    ({"evaluation": {"lengths": (0,)}}, "config.evaluation.lengths: 0: must be at least 1"),
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
      {"mesh": {"seq": 2}, "run": {"implementation": "scan"}},
      "implementation='scan': segments that wait for each other; set config.run.implementation=",
    ),
    (
      {"mesh": {"seq": 2}, "infini": {"rule": "delta", "z_correction": True}},
      "z_correction=True: each token needs z; set config.mesh.seq=1",
    ),
    ({"run": {"attention": "flash"}}, "config.run.attention='flash': choose one of auto"),
    ({"mesh": {"data": 0}}, "config.mesh.data=0: must be at least 1, or -1"),
    ({"mesh": {"data": -2}}, "config.mesh.data=-2: must be at least 1, or -1"),
  ],
  ids=str,
)
def test_every_mistake_is_one_line_with_its_remedy(sections, message):
  with pytest.raises(InputError) as error:
    resolve(sections)
  assert message in str(error.value) and "\n" not in str(error.value)


def test_a_pattern_keeps_the_section_of_each_of_its_systems():
  sections = {
    "model": {"pattern": ["infini", "compressive", "infini", "local"], "layers": 8},
    "infini": {"rule": "delta", "gate_init": -2.0},
    "compressive": {"compression_rate": 2},
    "warm": {"share": 0.0},
  }
  c = resolve(sections)
  m = c.model
  assert from_json(c.to_json()) == c
  assert list(m.by_system) == ["infini", "compressive", "local"]
  assert m.layers_of("infini") == (0, 2, 4, 6) and m.by_system["infini"].layers == 4
  assert m.by_system["infini"].memory.rule == "delta" and not m.by_system["infini"].pattern
  assert m.memory.with_memory(8) == (True, True, True, False) * 2
  assert m.title == "infini+compressive+infini+local" and not m.is_plain
  alone = dataclasses.replace(m, pattern=())
  assert alone.memory == m.by_system["infini"].memory, "its own section stays"
  before = {k: v for k, v in json.loads(Config().to_json())["model"].items() if k != "pattern"}
  assert resolve({"model": before}) == Config(), "an older run.json has no pattern"


def test_local_layers_beside_a_memory_leave_it_a_sum():
  pattern = {"model": {"pattern": ("infini", "local")}, "warm": {"share": 0.5, "growth": 2.0}}
  assert resolve(pattern).model.memory.not_additive() is None


def test_a_missing_package_is_named(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(InputError, match=r"wandb=True needs .*pip install"):
    config(log={"wandb": True})


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
  for words in ("swap", "(swap)", "(swap,)", "[ swap , ]", "('swap',)"):
    one = load_config([f"--config={file}", f"--config.evaluation.knock_out={words}"])
    assert one.evaluation.knock_out == ("swap",), words
  for wrong in ("lengths=(1,'b')", "lengths=x", "depths=(2.0,)"):
    with pytest.raises(InputError) as error:
      load_config([f"--config={file}", f"--config.evaluation.{wrong}"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", FIELDS)
def test_difference_names_what_makes_another_run(name):
  """A run may continue only with other devices, schedules of saving and logging, or evaluations."""
  section, field = name.split(".")
  old = Config().with_fields(model={"mixer": section}) if section in SYSTEMS else Config()
  value = getattr(old.sections()[section], field)
  new = old.with_fields(**{section: {field: ("other", value)}})
  free = {"data.path", "data.prefetch", "data.patience"}
  free |= {"run.remat", "run.implementation", "run.attention"}
  sections = ("evaluation.", "mesh.", "train.", "needle.", "chat.", "log.")
  free |= {f for f in FIELDS if f.startswith(sections)}
  free |= {"run.compilation_cache", "guard.in_a_row", "guard.returns", "guard.hang"}
  free -= {f"train.{f}" for f in "seed z_loss part rollout rollout_steps distill_weight".split()}
  found = difference(old, new)
  if name in free:
    assert found is None, f"config.{name} may change when a run goes on"
  else:
    assert found is not None and found.startswith(f"config.{name}: {value!r} there")
  assert difference(old, old) is None


def test_no_field_hides_behind_a_method_of_the_config():
  """A ConfigDict has methods; a field with the name of a method cannot be set as an attribute."""
  import ml_collections

  methods = set(dir(ml_collections.ConfigDict))
  assert not {field.split(".")[1] for field in FIELDS} & methods, "rename the field"
