"""The grid of a sweep: its syntax, its product, the names of its runs, one line for a mistake."""

import itertools

import pytest

from infini_jax.config import InputError
from infini_jax.sweep.grid import combinations, read_grid, value_of
from tests import tiny


@pytest.fixture
def file(tmp_path):
  (tmp_path / "config.py").write_text(tiny.CONFIG_FILE.format(sections=tiny.RUN))
  return f"--config={tmp_path / 'config.py'}"


def test_every_combination_has_its_values_and_shares_the_rest(file, rng):
  rates = [f"{rate:.3g}" for rate in rng.uniform(1e-4, 1e-2, 3)]
  axes = read_grid(
    [f"optimizer.learning_rate={','.join(rates)}", "model.width,model.ffn=(8,16), (16, 64)"]
  )
  runs = combinations(axes, [file, "--config.train.seed=7"])
  wanted = [(float(rate), *pair) for rate, pair in itertools.product(rates, [(8, 16), (16, 64)])]
  fields = ("optimizer.learning_rate", "model.width", "model.ffn")
  assert [tuple(value_of(run.config, f) for f in fields) for run in runs] == wanted
  assert {run.config.train.seed for run in runs} == {7}
  assert len({run.name for run in runs}) == 6
  assert runs[1].name == f"learning_rate={float(rates[0])},width=16,ffn=64"


def test_values_are_read_as_the_flags_of_the_config_read_them(file):
  axes = read_grid(
    ["evaluation.lengths=(1024,4096),(2048,),64", "evaluation.document='a,b',\"c d\"",
     "log.tensorboard=true"]
  )  # fmt: skip
  runs = combinations(axes, [file])
  found = [(run.config.evaluation.lengths, run.config.evaluation.document) for run in runs]
  lengths = ((1024, 4096), (2048,), (64,))
  assert found == list(itertools.product(lengths, ("a,b", "c d")))
  assert all(run.config.log.tensorboard is True for run in runs)
  assert runs[0].name == "lengths=(1024,4096),document=a,b,tensorboard=True"


def test_a_name_is_that_of_the_values_and_not_of_their_spelling(file):
  names = [
    combinations(read_grid([f"optimizer.learning_rate={text}"]), [file])[0].name
    for text in ("1e-3", "0.001", "1E-03")
  ]
  assert names == ["learning_rate=0.001"] * 3
  a, b = combinations(read_grid(["evaluation.document=x/y,x:y"]), [file])
  assert "/" not in a.name + b.name and a.name != b.name
  long, longer = combinations(read_grid([f"evaluation.document={'x' * 300},{'x' * 301}"]), [file])
  assert len(long.name) < 160 and long.name != longer.name
  a, b = combinations(read_grid(["train.seed=1,2", "mesh.seq=1"]), [file])
  assert (a.name, b.name) == ("seed=1,seq=1", "seed=2,seq=1")
  digits = "task.digits,needle.digits=(3,4)"
  assert combinations(read_grid([digits]), [file])[0].name == "task.digits=3,needle.digits=4"


@pytest.mark.parametrize(
  "texts, said",
  [
    ([], "--grid is missing: write --grid section.field=VALUE"),
    (["model.width"], "--grid=model.width: write --grid"),
    (["width=3"], "--grid=width=3: write --grid"),
    (["model.widht=3"], "config.model.widht: no such field; did you mean 'width'?"),
    (["modle.width=3"], "config.modle: no such section; did you mean 'model'?"),
    (["model.width="], "--grid=model.width=: no values"),
    (["model.width=3,,4"], "a value is empty"),
    (["model.width=(3"], ") is missing at the end"),
    (["model.width=3)"], ") closes no bracket"),
    (["evaluation.document='a,b"], "' is missing at the end"),
    (["model.width,model.ffn=3,4"], "3 is not a value for each of the 2 fields"),
    (["model.width,model.ffn=(3,4),(5)"], "(5) is not a value for each of the 2 fields"),
    (["model.width=8", "model.ffn,model.width=(1,2)"], "--grid gives config.model.width twice"),
    (["model.width=8,16,8"], "--grid gives width=8 twice"),
    (["optimizer.learning_rate=1e-3,0.001"], "--grid gives learning_rate=0.001 twice"),
    (["model.width=8,-1"], "--config.model.width=-1: config.model.width=-1: must be more than 0"),
    (["model.width=8,wide"], "--config.model.width=wide: expected a whole number"),
    (
      ["model.heads=2,4", "model.kv_heads=2,3"],
      "--config.model.heads=2 --config.model.kv_heads=3: config.model.heads=2 is not a multiple",
    ),
    (["train.seed=1,2"], "--config.train.seed is in --grid too"),
  ],
)
def test_a_mistake_is_one_line(file, texts, said):
  with pytest.raises(InputError) as error:
    combinations(read_grid(texts), [file, "--config.train.seed=3"])
  assert said in str(error.value) and "\n" not in str(error.value)
