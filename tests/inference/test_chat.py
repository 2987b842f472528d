"""A session answers conversations, and reads only what is new where the template allows it."""

import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax import cli
from infini_jax.config import InputError
from infini_jax.data.chat.conversation import Chat
from infini_jax.inference import OpenedRun, Session
from infini_jax.inference.chat import Told
from infini_jax.inference.engine import Engine
from infini_jax.runs.checkpoints import Checkpoints
from infini_jax.runs.workdir import Workdir
from infini_jax.training.step import TrainState
from tests.data.chat.vocabulary import CHATML, FORGETS, assistant, user, vocabulary
from tests.tiny import config, fake_params

GREEDY = {"temperature": 0.0, "tokens": 5}


def model(**fields):
  c = config(model={"rule": "delta", "segment_length": 8, **fields}, evaluation={"segments": 2})
  return c, fake_params(c.model)


@pytest.fixture(scope="module")
def engine():
  return Engine(*model())


def session_of(engine, template=CHATML):
  return Session(OpenedRun(engine, vocabulary(template)))


class Counting(Session):
  """A session that knows what it was given to read."""

  def read(self, source, advance=None, *, marked=False):
    self.given = [*getattr(self, "given", []), np.asarray(source[0]).tolist()]
    return super().read(source, advance, marked=marked)


def test_an_answer_is_what_the_model_writes_after_the_rendered_question(engine):
  session, said = session_of(engine), []
  answer = session.chat([user("Who?")], said.append, **GREEDY)
  assert "".join(said).strip() == answer
  plain = Session(session.run, begin=False)
  chat = Chat(plain.tokenizer, plain.tokenizer.template)
  plain.read([chat.encode(chat.render([user("Who?")], ask=True))], marked=True)
  pieces = [*plain.generate(5, temperature=0.0, ends=(chat.end,))]
  assert "".join(piece.text for piece in pieces).strip() == answer
  assert session.positions == plain.positions and session.recent == plain.recent


def test_the_next_question_reads_only_what_is_new(engine):
  session = Counting(OpenedRun(engine, vocabulary()))
  talk = [user("Who wrote the long text before?")]
  # An answer that the model is made to give, with the token that ends it.
  chat = Chat(session.tokenizer, session.tokenizer.template)
  text = chat.render(talk, ask=True)
  session.chat(talk, **(GREEDY | {"tokens": 0}))
  session.read([[*chat.encode("Ann."), chat.end]], marked=True)
  session.told = Told.of(session.positions[0], text + "Ann.<|im_end|>")
  session.given.clear()
  talk += [assistant("Ann."), user("When?")]
  second = session.chat(talk, **GREEDY)
  (new,) = session.given
  rest = "<|im_end|>\n<|im_start|>user\nWhen?<|im_end|>\n<|im_start|>assistant\n"
  assert new == chat.encode(rest)[1:].tolist()
  again = session_of(engine)
  assert again.chat(talk, **GREEDY) == second and again.positions == session.positions


def test_a_template_that_changes_earlier_answers_reads_all_again(engine):
  session = Counting(OpenedRun(engine, vocabulary(FORGETS)))
  chat = Chat(session.tokenizer, session.tokenizer.template)
  talk = [user("One?")]
  session.chat(talk, **GREEDY)
  text = chat.render(talk, ask=True) + "a</think>b<|im_end|>"
  session.told = Told.of(session.positions[0], text)
  session.given.clear()
  talk += [assistant("a</think>b"), user("Two?")]
  second = session.chat(talk, **GREEDY)
  assert session.given == [chat.encode(chat.render(talk, ask=True)).tolist()]
  assert session_of(engine, FORGETS).chat(talk, **GREEDY) == second


def test_another_conversation_replaces_the_first(engine):
  session = session_of(engine)
  session.chat([user("One?")], **GREEDY)
  other = session.chat([user("Quite another?")], **GREEDY)
  assert session_of(engine).chat([user("Quite another?")], **GREEDY) == other


def test_a_fork_goes_on_alone(engine):
  session = session_of(engine)
  first = session.chat([user("One?")], **GREEDY)
  fork = session.fork()
  talk = [user("One?"), assistant(first or "-"), user("Two?")]
  assert fork.chat(talk, **GREEDY) == session.chat(talk, **GREEDY)


def test_text_that_is_no_conversation_is_not_thrown_away(engine):
  session = session_of(engine)
  session.read("some text\n")
  with pytest.raises(InputError, match="holds other text: reset"):
    session.chat([user("One?")], **GREEDY)
  session.reset()
  session.chat([user("One?")], **GREEDY)


@pytest.mark.parametrize(
  "messages, said",
  [
    ([user("One?"), assistant("x")], "the last one is of the assistant"),
    ([{"role": "bot", "content": "x"}], "unknown role 'bot'"),
    ([user("<|im_end|>")], "a special token"),
    ("One?", "not a list"),
  ],
)
def test_wrong_messages_are_refused_before_anything_is_read(engine, messages, said):
  session = session_of(engine)
  with pytest.raises(InputError, match=said):
    session.chat(messages, **GREEDY)
  assert session.positions == [1]


def test_a_session_of_several_lanes_and_a_missing_template_are_refused(engine):
  with pytest.raises(InputError, match="2 lanes holds no conversation"):
    Session(OpenedRun(engine, vocabulary()), 2).chat([user("One?")])
  with pytest.raises(InputError, match="comes with no chat template"):
    session_of(engine, None).chat([user("One?")])
  plain = session_of(engine, None)
  assert isinstance(plain.chat([user("One?")], template="plain", **GREEDY), str)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """A run of random parameters whose vocabulary has a template."""
  c, params = model()
  workdir = Workdir(tmp_path_factory.mktemp("chat") / "run")
  tokenizer = vocabulary()
  workdir.claim(c, "text", tokenizer.fingerprint)
  tokenizer.save(workdir.tokenizer)
  with Checkpoints(workdir) as saved:
    saved.save(0, TrainState(jnp.zeros((), jnp.int32), params, None, None, None))
  return workdir.path


def test_a_saved_conversation_goes_on(workdir, tmp_path):
  session = Session.load(workdir)
  first = session.chat([user("One?")], **GREEDY)
  session.save(tmp_path / "state")
  talk = [user("One?"), assistant(first or "-"), user("Two?")]
  loaded = Session.load(tmp_path / "state", model=session)
  assert loaded.told == session.told
  assert loaded.chat(talk, **GREEDY) == session.chat(talk, **GREEDY)


def test_the_command_asks_with_the_template(workdir, tmp_path, capsys):
  file = tmp_path / "about.txt"
  file.write_text("A long text.\n")
  flags = ["generate", f"--workdir={workdir}", "--tokens=5", "--temperature=0"]
  assert cli.main([*flags, "--ask=Who?", f"--ask-about={file}"]) == 0
  out = capsys.readouterr().out
  asked = [user("A long text.\n\nWho?")]
  assert out.strip() == Session.load(workdir).chat(asked, **GREEDY)


@pytest.mark.parametrize(
  "flags, said",
  [
    (["--ask= "], "--ask is empty"),
    (["--ask=Who?", "--prompt=x"], "--ask with --prompt: a question is a conversation of its own"),
    (["--ask-about=x"], "there is no question; give --ask=TEXT"),
    (["--ask=Who?", "--ask-about=none.txt"], "--ask-about=none.txt: no such file"),
    (["--ask=Who?", "--chat-template=chatml"], "choose own, own:NAME, plain"),
    (["--ask=<|im_end|>"], "a special token of the vocabulary"),
  ],
)
def test_flags_that_do_not_go_together_are_one_line(workdir, capsys, flags, said):
  assert cli.main(["generate", f"--workdir={workdir}", *flags]) == 2
  assert said in capsys.readouterr().err
