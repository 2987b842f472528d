"""`infini-jax serve`: opens a run, and answers requests until a signal comes."""

import argparse
import os
import signal
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console

from infini_jax.data.chat.conversation import open_chat
from infini_jax.inference import open_run
from infini_jax.inference.arguments import number, whole
from infini_jax.paths import folder_to_write, local
from infini_jax.runs.workdir import Workdir
from infini_jax.serve.app import make_app
from infini_jax.serve.arguments import ENVIRON
from infini_jax.serve.guard import LOCAL, Keys
from infini_jax.serve.limits import Limits
from infini_jax.serve.server import Server, listen
from infini_jax.serve.service import Service


def serve(args: argparse.Namespace, console: Console) -> int:
  """Serves a run; returns the exit status.

  Raises:
    InputError: a flag is wrong, there is no run, or its state grows with the text.
  """
  limits = Limits(**{field.name: getattr(args, field.name) for field in fields(Limits)})
  whole("--port", args.port, most=65535)
  grace = number("--grace", args.grace)
  if args.step is not None:
    whole("--step", args.step)
  keys = Keys.of_file(local(args.keys, "--keys")) if args.keys is not None else Keys(_environ())
  workdir = Workdir(args.workdir)
  workdir.config()
  if args.chat_template != "own":  # a model may have none of its own, and then it does not chat
    open_chat(workdir.load_tokenizer(), args.chat_template)
  name = args.name or Path(args.workdir).resolve().name
  folder = folder_to_write(args.sessions_dir or workdir.path / "sessions", "--sessions-dir")
  with listen(args.host, args.port) as waiting:
    say: Any = lambda line: console.print(line, soft_wrap=True, highlight=False, markup=False)
    say(f"opening {args.workdir}; compiling for {limits.lanes} lanes")
    service = Service(
      open_run(args.workdir, args.step, args.ema), name, folder, limits, args.chat_template
    )
    if others := service.sessions.others:
      say(f"{folder}: {others} sessions of another model or step are kept, and not served")
    host, port = waiting.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    say(f"{name}, step {service.run.step}: {len(service.sessions)} sessions; http://{shown}:{port}")
    local_only = args.host in LOCAL or host.startswith("127.")
    hosts = LOCAL + (args.host,) if local_only else ()
    app = make_app(service, keys, hosts, workdir.path / "report.html")
    if not local_only and not keys:
      say("there are no keys (--keys): everybody who reaches this address uses it")
    server = Server(app, service.scheduler.stop, grace)
    try:
      server.run(sockets=[waiting])
    finally:
      service.close()
    say(f"{name}: ended; {len(service.sessions)} sessions are kept")
  return 130 if server.signal == signal.SIGINT else 0


def _environ() -> list[str]:
  return os.environ.get(ENVIRON, "").split()
