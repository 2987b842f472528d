"""The stages of a mixture, as a config writes them."""

import pytest

from infini_jax.config import InputError, load_config, mix_stages
from tests.tiny import CONFIG_FILE, RUN

SECTIONS = {**RUN, "data": {**RUN["data"], "path": "mix:a=1,b=2"}}


@pytest.fixture
def load(tmp_path):
  (tmp_path / "config.py").write_text(CONFIG_FILE.format(sections=SECTIONS))
  return lambda *flags: load_config([f"--config={tmp_path / 'config.py'}", *flags])


def test_stages_are_steps_with_weights(load):
  assert mix_stages(load()) == ()
  found = mix_stages(load("--config.data.stages=0=1:3,1000=0:1.5"))
  assert found == ((0, (1.0, 3.0)), (1000, (0.0, 1.5)))
  assert mix_stages(load("--config.data.stages=9=2:1")) == ((9, (2.0, 1.0)),)


@pytest.mark.parametrize(
  "flags, message",
  [
    (["stages=9:1"], "write STEP=WEIGHT:WEIGHT"),
    (["stages=9=a:b"], "write STEP=WEIGHT:WEIGHT"),
    (["stages=x=1:2"], "write STEP=WEIGHT:WEIGHT"),
    (["stages=9=1:"], "write STEP=WEIGHT:WEIGHT"),
    (["stages=9=1:-2"], "weights are 0 or more"),
    (["stages=9=nan:2"], "weights are 0 or more"),
    (["stages=9=inf:2"], "weights are 0 or more"),
    (["stages=9=0:0"], "one of them is above 0"),
    (["stages=-1=1:1"], "its step must be above"),
    (["stages=9=1:2,9=2:1"], "'9=2:1': its step must be above that of the stage before"),
    (["stages=9=1:2,8=2:1"], "'8=2:1': its step must be above that of the stage before"),
    (["stages=9=1:2", "path=stores/a"], "stages are of a mixture; set config.data.path=mix:"),
  ],
)
def test_wrong_stages_are_refused_in_one_line(load, flags, message):
  with pytest.raises(InputError) as error:
    load(*(f"--config.data.{flag}" for flag in flags))
  assert "config.data.stages=" in str(error.value) and message in str(error.value)
  assert "\n" not in str(error.value)


def test_stages_need_lanes_that_read_documents_from_the_first_step_on(load):
  stages = "--config.data.stages=9=1:2"
  for more, message in (
    (["--config.train.rollout=8", "--config.train.rollout_steps=1"], "begins with batch 0"),
    (["--config.task.name=passkey", "--config.data.carry_state=False"], "lane reads documents"),
  ):
    with pytest.raises(InputError, match=message):
      load(stages, *more)
