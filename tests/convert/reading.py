"""Logits and parameters of a converted run."""

import jax
import numpy as np
from rich.console import Console

from infini_jax.config import MeshConfig
from infini_jax.models import abstract_params, bind
from infini_jax.parallel import make_mesh
from infini_jax.runs.checkpoints import Checkpoints
from infini_jax.runs.workdir import Workdir


def console() -> Console:
  return Console(quiet=True)


def params_of(workdir):
  """The config of a run and its parameters, on one device."""
  config = Workdir(workdir).config()
  mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
  checkpoints = Checkpoints(Workdir(workdir))
  with jax.set_mesh(mesh):
    params, _ = checkpoints.restore_params(abstract_params(config.model, mesh))
  checkpoints.close()
  return config.model, params, mesh


def logits_of(workdir, tokens_BT, mask_BT=None):
  """Float32 logits of one call from the start of a text."""
  model, params, mesh = params_of(workdir)
  with jax.set_mesh(mesh):

    def run(params, tokens_BT, mask_BT):
      bound = bind(model, params)
      hidden_BTD, _ = bound(tokens_BT, bound.state(tokens_BT.shape[0]), mask_BT=mask_BT)
      return bound.logits(hidden_BTD)

    mask_BT = np.ones(tokens_BT.shape, bool) if mask_BT is None else mask_BT
    return np.asarray(jax.jit(run)(params, tokens_BT.astype(np.int32), mask_BT))


def nll(logits_BTV, tokens_BT):
  """The mean over the predictions of every token but the first, in float64."""
  x = logits_BTV[:, :-1].astype(np.float64)
  x -= x.max(-1, keepdims=True)
  right = np.take_along_axis(x, tokens_BT[:, 1:, None], -1)[..., 0]
  return float(np.mean(np.log(np.exp(x).sum(-1)) - right))
