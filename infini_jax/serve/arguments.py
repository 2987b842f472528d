"""The flags of `infini-jax serve`; the packages of the extra are not needed to show them."""

import argparse
import dataclasses
from typing import Any

from infini_jax.serve.limits import Limits

ENVIRON = "INFINI_JAX_SERVE_KEYS"  # keys with spaces between them, where there is no file
LIMITS = {
  "lanes": "sessions that write at the same time, in one program",
  "requests": "requests that run or wait at the same time",
  "sessions": "sessions that are kept",
  "in_memory": "sessions whose states are in memory; the others are on disk alone",
  "body_mb": "megabytes of a request",
  "tokens": "tokens that one request may write",
  "seconds": "how long a request may take, with its waiting",
  "send_seconds": "how long a client may take to send a request",
}


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
  """The flags of the command."""
  add = parser.add_argument
  add("--workdir", required=True, help="the folder of the run")
  add("--host", default="127.0.0.1", help="the address (default %(default)s: this machine alone)")
  add("--port", type=int, default=8000, help="0: any that is free (default %(default)s)")
  add("--keys", metavar="FILE", help=f"one key a line; also {ENVIRON}; default: no keys")
  add("--name", help="of the model, in requests; default: the name of the folder")
  add("--sessions-dir", metavar="DIR", help="where sessions are kept; default: WORKDIR/sessions")
  add("--chat-template", default="own", help="own, plain, file:FILE (default %(default)s)")
  for field in dataclasses.fields(Limits):
    kind: Any = field.type
    help = f"{LIMITS[field.name]} (default %(default)s)"
    add(f"--{field.name.replace('_', '-')}", type=kind, default=field.default, help=help)
  add(
    "--grace",
    type=float,
    default=10.0,
    help="seconds that running requests have after SIGTERM (default %(default)s)",
  )
  add("--step", type=int, help="which checkpoint; the newest by default")
  add("--ema", action="store_true", help="the moving average of the parameters")
