"""Writes the API reference from the docstrings of the package: `make reference`.

    python docs/reference.py [FOLDER]

The default folder is build/reference/. A package has a page for the names in its `__all__`. The
rooms in `WHOLE` have a page for every file. The comment behind a field or a constant is its
description. The exit status is 1 if the generator gives a warning or a link is broken.
"""

import ast
import importlib
import io
import os
import pkgutil
import sys
import tokenize
import warnings
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import links

ROOT = Path(__file__).parent.parent
WHOLE = ("infini_jax.ops", "infini_jax.models.mixers", "infini_jax.tasks")
ALSO = ("infini_jax.config.model", "infini_jax.config.schema")
NO_DOCSTRING = ("Alias for field number", "Create new instance of")  # texts of every NamedTuple

DOT = '</span><span class="o">.</span><span class="n">'  # the dot in a highlighted name


def modules() -> list[str]:
  """The names of all modules that have a page, a package before its modules."""
  import infini_jax

  names = ["infini_jax", *ALSO]
  for found in pkgutil.walk_packages(infini_jax.__path__, "infini_jax."):
    exports = found.ispkg and hasattr(importlib.import_module(found.name), "__all__")
    if exports or found.name.startswith(tuple(f"{room}." for room in WHOLE)):
      names.append(found.name)
  return sorted(names)


@cache
def comments(module: str) -> dict[str, str]:
  """The comments behind the constants of a module and the fields of its classes, by their names."""
  spec = find_spec(module) if module.startswith("infini_jax") else None
  if spec is None or spec.origin is None:
    return {}
  text = Path(spec.origin).read_text()
  tokens = tokenize.generate_tokens(io.StringIO(text).readline)
  behind = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
  found: dict[str, str] = {}

  def visit(body: list[ast.stmt], inside: str) -> None:
    for node in body:
      if isinstance(node, ast.ClassDef):
        visit(node.body, f"{inside}{node.name}.")
      elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{module}."):
        there = comments(str(node.module))
        found.update({a.name: there[a.name] for a in node.names if a.name in there})
      elif isinstance(node, ast.Assign | ast.AnnAssign) and node.end_lineno in behind:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for name in (n for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)):
          found[inside + name.id] = behind[node.end_lineno]

  visit(ast.parse(text).body, "")
  return found


def describe(namespace, pages) -> None:
  """Uses comments as descriptions of variables, and removes members that no page shows.

  These are members of other packages, and those that a class inherits from a module without a page:
  pdoc makes links to them where a docstring names them, but no anchors.

  Args:
    namespace: a module or a class; changed in place.
    pages: the modules with a page, by name.
  """
  import pdoc.doc

  for name, member in [*namespace.members.items()]:
    module, qualified = member.taken_from
    of_base = (module, qualified.rpartition(".")[0]) != namespace.taken_from
    inherited = of_base and isinstance(namespace, pdoc.doc.Class)
    if not module.startswith("infini_jax") or (inherited and module not in pages):
      del namespace.members[name]
    elif isinstance(member, pdoc.doc.Class):
      describe(member, pages)
    elif member.docstring.startswith(NO_DOCSTRING):
      member.docstring = ""
    if isinstance(member, pdoc.doc.Variable):
      member.docstring = member.docstring or comments(module).get(qualified, "")


def build(folder: Path) -> list[str]:
  """Writes the pages into a folder; returns warnings and broken links."""
  os.environ["PDOC_DISPLAY_ENV_VARS"] = "1"  # also shows a default that equals a variable's value
  import pdoc.doc
  import pdoc.render

  names = modules()
  with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    pages = {name: pdoc.doc.Module.from_name(name) for name in names}
    said.clear()  # removes warnings of imported libraries
    for name, page in pages.items():
      page.submodules = [pages[n] for n in names if n.rpartition(".")[0] == name]
      listed = (f"- `{p.modulename}`: {p.docstring.splitlines()[0]}" for p in page.submodules)
      page.docstring = "\n".join([page.docstring, "", *listed])
      describe(page, pages)
    pdoc.render.configure(docformat="google")
    texts = {f"{n.replace('.', '/')}.html": pdoc.render.html_module(pages[n], pages) for n in names}
    texts["index.html"] = pdoc.render.html_index(pages)
    texts["search.js"] = pdoc.render.search_index(pages)
  for name, text in texts.items():
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text.replace(f"jaxlib{DOT}_jax{DOT}", "").replace("jaxlib._jax.", ""))
  return [str(w.message) for w in said] + links.broken_pages(folder)


def main() -> int:
  """Builds the reference, and prints warnings and the path of its first page."""
  folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "reference"
  wrong = build(folder)
  print(*wrong, f"{folder / 'index.html'}", sep="\n")
  return int(bool(wrong))


if __name__ == "__main__":
  sys.exit(main())
