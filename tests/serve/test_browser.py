"""The page in a real browser, by clicks, against a real server with a tiny model."""

import os
import re
import shutil

import pytest

pytest.importorskip("uvicorn", reason="needs the extra serve")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")

from tests.serve.models import write_run  # noqa: E402
from tests.serve.servers import Process  # noqa: E402

expect = playwright.expect
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or ""
KEY = "a-key-that-is-long-enough"
TEXT = "The first line of a small book. It has a second one, too.\n"
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(not BROWSER, reason="needs Chromium of the system"),
]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(scope="module")
def browser():
  with playwright.sync_playwright() as one:
    opened = one.chromium.launch(executable_path=BROWSER, args=FLAGS)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
  folder = write_run(tmp_path_factory.mktemp("browser") / "run", seed=3)
  (folder / "report.html").write_text("<!DOCTYPE html><p>The report of this run.", "utf-8")
  with Process(folder, "--lanes=3", "--requests=8") as server:
    yield server


@pytest.fixture(scope="module")
def book(tmp_path_factory):
  file = tmp_path_factory.mktemp("books") / "a small book.txt"
  file.write_text(TEXT * 400, "utf-8")
  return file


@pytest.fixture
def page(browser, request):
  """A page of its own storage. It says nothing on its console, and asks this server alone."""
  wanted = getattr(request, "param", {})
  context = browser.new_context(accept_downloads=True, **wanted)
  context.set_default_timeout(60_000)
  expect.set_options(timeout=60_000)
  page, said, asked = context.new_page(), [], []
  page.on("console", lambda message: said.append(message.text))
  page.on("pageerror", lambda error: said.append(str(error)))
  page.on("request", lambda request: asked.append(request.url))
  yield page
  if folder := os.environ.get("INFINI_JAX_SCREENSHOTS"):
    name = re.sub(r"\W+", "-", request.node.name)
    page.screenshot(path=f"{folder}/{name}.png", full_page=True)
  context.close()
  assert [line for line in said if "status of 40" not in line] == []
  assert all(re.match(r"(http://127\.0\.0\.1:|blob:|data:)", url) for url in asked), asked


def read(page, server, book):
  page.goto(server.address)
  page.set_input_files("#file", book)
  expect(page.locator(".pane")).to_have_count(1)


def ask(pane, question, tokens=12):
  if not pane.get_by_label("Most tokens").is_visible():
    pane.get_by_text("How it answers").click()
  pane.get_by_label("Most tokens").fill(str(tokens))
  pane.get_by_label("Your question").fill(question)
  pane.get_by_label("Your question").press("Enter")


def test_a_book_is_read_and_asked_in_two_chats_side_by_side(page, served, book):
  page.goto(served.address)
  expect(page.get_by_text("Read once, ask many times")).to_be_visible()
  page.set_input_files("#file", book)
  expect(page.locator("#title")).to_have_text("Reading a small book.txt")
  expect(page.locator("#share")).to_have_text(re.compile(r"^[1-9]\d?%$"))  # while it is read
  expect(page.locator("#filled")).to_have_text(re.compile(r"^\d+% in use$"))
  expect(page.locator("#title")).to_have_text("Has read a small book.txt")
  expect(page.locator("#bars > span")).to_have_count(2)
  expect(page.locator("#gates i")).to_have_count(4)
  first = page.locator(".pane").nth(0)
  ask(first, "Who wrote this?")
  expect(first.locator(".below")).to_contain_text("tokens/s")
  first.get_by_role("button", name="Fork").click()
  second = page.locator(".pane").nth(1)
  expect(second.get_by_role("heading")).to_have_text("a small book.txt (fork)")
  ask(second, "Who else?")
  expect(second.locator(".below")).to_have_count(1)
  expect(first.locator(".turn.user")).to_have_text(["Who wrote this?"])
  left, right = first.bounding_box(), second.bounding_box()
  assert left["x"] + left["width"] <= right["x"] and abs(left["y"] - right["y"]) < 1
  expect(page.locator("#sessions button")).to_have_count(2)
  expect(page.locator("#sessions [aria-pressed=true]")).to_have_count(2)

  first.get_by_role("button", name="What helped?").click()
  expect(first.locator(".why")).to_contain_text("nats of this answer's loss")
  assert first.locator(".text .word").count() >= 1
  helped, harmed = first.locator(".why p .word").all()
  expect(helped).to_have_css("background-color", "rgba(10, 88, 168, 0.5)")
  expect(harmed).to_have_css("background-color", "rgba(204, 102, 0, 0.5)")
  ask(first, "And then?")  # the conversation continues
  expect(first.locator(".below")).to_have_count(2)
  page.reload()
  page.locator("#sessions button", has_text=re.compile("txt(?! \\(fork)")).click()
  expect(page.locator(".turn.user")).to_have_text(["Who wrote this?", "And then?"])

  page.on("dialog", lambda dialog: dialog.accept())
  page.get_by_role("button", name="Delete").click()
  expect(page.locator(".pane")).to_have_count(0)
  expect(page.locator("#sessions button")).to_have_count(1)


def test_a_session_is_saved_and_loaded(page, served, book, tmp_path):
  read(page, served, book)
  with page.expect_download() as saved:
    page.get_by_role("button", name="Save", exact=True).click()
  file = tmp_path / saved.value.suggested_filename
  assert file.name == "a small book.txt.state"
  saved.value.save_as(file)
  before = page.locator("#sessions button").count()
  page.set_input_files("#file", file)
  expect(page.locator("#sessions button")).to_have_count(before + 1)
  expect(page.locator(".pane")).to_have_count(1)
  expect(page.locator("#filled")).to_have_text(re.compile(r"^[1-9]\d*% in use$"))
  ask(page.locator(".pane"), "Who?")
  expect(page.locator(".below")).to_have_count(1)
  damaged = tmp_path / "damaged.state"
  damaged.write_bytes(file.read_bytes()[:1000])
  page.set_input_files("#file", damaged)
  expect(page.locator("#problem")).to_contain_text("the state")


def test_an_answer_can_be_stopped_and_markup_stays_text(page, served, tmp_path):
  book = tmp_path / "<img src=x onerror=alert(1)>.txt"
  book.write_text(TEXT, "utf-8")
  read(page, served, book)
  pane = page.locator(".pane")
  expect(pane.get_by_role("heading")).to_have_text(book.name)
  ask(pane, "<script>alert(1)</script>", tokens=4000)
  pane.get_by_role("button", name="Stop").click()
  expect(pane.get_by_role("button", name="Ask")).to_be_visible()
  expect(pane.locator(".turn.user")).to_have_text("<script>alert(1)</script>")
  assert page.locator("main img, main script").count() == 0


def test_reading_can_be_cancelled(page, served, book, tmp_path):
  long = tmp_path / "long.txt"
  long.write_text(TEXT * 20_000, "utf-8")
  page.goto(served.address)
  page.set_input_files("#file", long)
  page.get_by_role("button", name="Cancel").click()
  expect(page.locator("#reading")).to_be_hidden()
  expect(page.get_by_text("Read once, ask many times")).to_be_visible()


def test_the_report_is_a_link(page, served):
  page.goto(served.address)
  page.get_by_role("link", name="Report").click()
  expect(page.locator("body")).to_have_text("The report of this run.")


@pytest.mark.parametrize(
  "page",
  [
    {"color_scheme": scheme, "viewport": {"width": width, "height": 800}}
    for scheme in ("light", "dark")
    for width in (360, 1280)
  ],
  ids=lambda wanted: f"{wanted['color_scheme']}-{wanted['viewport']['width']}",
  indirect=True,
)
def test_it_fits_its_window_and_follows_the_setting(page, served, book, request):
  read(page, served, book)
  pane = page.locator(".pane")
  ask(pane, "What is a long question that needs more than one line on the screen of a phone?", 60)
  expect(pane.locator(".below")).to_have_count(1)
  pane.get_by_role("button", name="Fork").click()
  expect(page.locator(".pane")).to_have_count(2)
  width = page.viewport_size["width"]
  for each in page.locator("button, input, textarea, progress, h1, h2, p, .card").all():
    if (box := each.bounding_box()) and box["width"] > 1:
      assert 0 <= box["x"] and box["x"] + box["width"] <= width, each
  paper = {"light": "rgb(251, 251, 250)", "dark": "rgb(18, 21, 24)"}
  expect(page.locator("body")).to_have_css(
    "background-color", paper["dark" if "dark" in request.node.name else "light"]
  )


def test_a_wrong_key_is_told_and_another_one_is_asked_for(page, tmp_path):
  folder = write_run(tmp_path / "run")
  with Process(folder, INFINI_JAX_SERVE_KEYS=KEY) as server:
    page.goto(server.address)
    expect(page.get_by_role("dialog")).to_be_visible()
    expect(page.locator("#key-said")).to_be_hidden()
    page.get_by_label("Key", exact=True).fill("a-wrong-key-of-good-length")
    page.get_by_label("Key", exact=True).press("Enter")
    expect(page.locator("#key-said")).to_have_text("the key is wrong")
    page.get_by_label("Key", exact=True).fill(KEY)
    page.get_by_role("button", name="Use this key").click()
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.locator("#model")).to_have_text("run, step 0")
    page.reload()
    expect(page.locator("#model")).to_have_text("run, step 0")
