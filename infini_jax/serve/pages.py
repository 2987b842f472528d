"""The routes of the web page, and of the report of the run.

The page is a few files of the package, sent as they are. It gets everything else by the API, as
any client does. Its policy allows a browser to load from this server alone, and no other script.
"""

from importlib.resources import files
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from infini_jax.serve.errors import ApiError

NAMES = ("page.css", "page.js", "api.js", "chat.js", "text.js")
PARTS = {"/": "page.html", **{f"/{name}": name for name in NAMES}}
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
CLOSED = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
POLICY = f"{CLOSED}; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:"
REPORT_POLICY = f"{CLOSED}; style-src 'unsafe-inline'; img-src data:"


def routes() -> list[Route]:
  """The routes of the page, and of the report."""
  return [*(_part(path, name) for path, name in PARTS.items()), Route("/report", report)]


def _part(path: str, name: str) -> Route:
  content = files("infini_jax.serve").joinpath("page", name).read_bytes()
  kind = KINDS[Path(name).suffix]

  async def page(request: Request) -> Response:
    headers = {"content-security-policy": POLICY, "referrer-policy": "no-referrer"}
    return Response(content, media_type=kind, headers=headers)

  return Route(path, page)


def readable(report: Path | None) -> bool:
  """Whether the run has a report."""
  return report is not None and report.is_file()


async def report(request: Request) -> Response:
  """`report.html` of the run, as it is now."""
  file: Path | None = request.app.state.report
  if file is None or not readable(file):
    raise ApiError(404, "the run has no report; infini-jax report RUN writes it", "no_route")
  headers = {"content-security-policy": REPORT_POLICY, "referrer-policy": "no-referrer"}
  return FileResponse(file, media_type="text/html", headers=headers)
