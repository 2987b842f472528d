"""`infini-jax convert`: its arguments, and the choice of the conversion."""

import argparse

from rich.console import Console

from infini_jax.config import InputError
from infini_jax.paths import folder_to_write, local

SIZES = {"K": 10**3, "M": 10**6, "G": 10**9}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds a subcommand for each kind of conversion."""
  kinds = parser.add_subparsers(dest="kind", required=True, help="what is made of what")

  def kind(name, origin, what, out):
    made = kinds.add_parser(name, help=what, description=what, allow_abbrev=False)
    made.add_argument("origin", metavar=origin[0], help=origin[1])
    made.set_defaults(origin_name=origin[0])
    made.add_argument("out", metavar="OUT", help=out)
    return made

  def uploads(made):
    what = "also upload the folder to the hub, as OWNER/MODEL; a new one is private"
    made.add_argument("--push", metavar="NAME", help=what)

  def checkpoint(made):
    made.add_argument("--step", type=int, help="which checkpoint; the newest by default")
    what = "the moving average of the parameters (config.optimizer.ema), not their last values"
    made.add_argument("--ema", action="store_true", help=what)

  folder = (
    "DIR_OR_NAME",
    "config.json, *.safetensors and a tokenizer; or a model's name on the hub",
  )
  run = "the folder of the run to make"
  hf = kind("hf", folder, "a Hugging Face folder becomes a run", run)
  file = ("FILE", "a .gguf file of the llama architecture")
  gguf = kind("gguf", file, "a GGUF file becomes a run, dequantized", run)
  for made, default in ((hf, "the weights' own"), (gguf, "float32")):
    made.add_argument(
      "--dtype", choices=("float32", "bfloat16"), help=f"their number type (default: {default})"
    )
  what = "a run becomes a Hugging Face folder; its memory goes to a file in it"
  made = kind("export", ("WORKDIR", "the folder of a run"), what, "the folder to make")
  made.add_argument(
    "--max-shard-bytes",
    metavar="N",
    default="5G",
    help="largest size of one file of weights (default %(default)s)",
  )
  what = "the whole model, for transformers with trust_remote_code: docs/export.md"
  made.add_argument("--memory", action="store_true", help=what)
  checkpoint(made)
  uploads(made)
  what = "saves what training added to a model: adapters, gates"
  made = kind("adapter", ("WORKDIR", "the folder of a run"), what, "the folder to make")
  checkpoint(made)
  made.add_argument(
    "--dtype",
    choices=("float32", "bfloat16"),
    default="float32",
    help="their number type (default %(default)s)",
  )
  uploads(made)
  what = "a run with low-rank adapters becomes one whose weights hold them"
  checkpoint(kind("merge", ("WORKDIR", "the folder of a run"), what, run))
  what = "a model and an adapter become a run"
  made = kind("adapt", ("ORIGINAL", "the folder of the run that it belongs to"), what, run)
  made.add_argument("--adapter", required=True, metavar="FOLDER", help="made by `convert adapter`")


def convert(args: argparse.Namespace, console: Console) -> None:
  """Runs one conversion.

  Raises:
    InputError: the conversion raises it.
  """
  out = folder_to_write(args.out, "OUT")
  origin = local(args.origin, args.origin_name)
  name = getattr(args, "push", None)
  if name is not None:
    from infini_jax.convert import hub

    hub.check_push(name)
  if args.kind == "hf":
    from infini_jax.convert.huggingface import convert

    convert(str(origin), out, args.dtype, console)
  elif args.kind == "gguf":
    from infini_jax.convert.gguf import convert as convert_gguf

    convert_gguf(origin, out, args.dtype, console)
  elif args.kind == "adapter":
    from infini_jax.convert.adapter import save

    save(str(origin), out, args.step, args.dtype, console, args.ema)
  elif args.kind == "merge":
    from infini_jax.convert.merge import merge

    merge(str(origin), out, args.step, console, args.ema)
  elif args.kind == "adapt":
    from infini_jax.convert.adapter import adapt

    adapt(str(origin), local(args.adapter, "--adapter"), out, console)
  else:
    from infini_jax.convert.export import export

    size = _bytes(args.max_shard_bytes)
    export(str(origin), out, size, args.step, console, args.ema, args.memory)
  if name is not None:
    hub.push(out, name, console)


def _bytes(text: str) -> int:
  number, unit = (text[:-1], SIZES[text[-1]]) if text[-1:] in SIZES else (text, 1)
  if not number.isdecimal() or not int(number):
    raise InputError(f"--max-shard-bytes={text}: give a number of bytes, such as 500M or 5G")
  return int(number) * unit
