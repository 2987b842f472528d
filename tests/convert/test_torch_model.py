"""The model that `convert export --memory` writes, in transformers, compared with the run."""

import os

import jax
import numpy as np
import pytest

from infini_jax.config import Config, ModelConfig
from infini_jax.convert.export import export
from infini_jax.data.tokenizers import ByteTokenizer
from infini_jax.inference import Session
from infini_jax.runs.checkpoints import Checkpoints
from infini_jax.runs.workdir import Workdir
from tests.convert.reading import console, logits_of
from tests.tiny import changed, fake_params, of_model, patterned, run_config

pytestmark = pytest.mark.slow
REMEDY = "pip install -e .[reference]"
PATTERNS = ((), (), (), ("infini", "local"), ("local", "gated_delta", "infini"))
SCALINGS = ((), (), (4.0,), (8.0, 1.0, 4.0, 16.0), (4.0, 1.0, 32.0, 16.0, 1.2))
CLOSE = 1e-4


@pytest.fixture
def torch(monkeypatch, tmp_path):
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
  pytest.importorskip("transformers", reason=REMEDY)
  return pytest.importorskip("torch", reason=REMEDY)


def random_model(rng) -> ModelConfig:
  """A model with a random choice of everything that the code in torch has."""
  pick, coin = lambda *x: x[int(rng.integers(len(x)))], lambda: bool(rng.integers(2))
  K, N, rule = pick(1, 2, 3), int(rng.integers(2, 20)), pick("linear", "delta")
  own = {
    "rule": rule,
    "gate": pick("sigmoid", "hard_sigmoid"),
    "write_gate": coin(),
    "adapter_rank": pick(0, 2),
    "scale_first_segment": coin(),
    "normalize_keys": coin(),
    "z_correction": rule == "delta" and coin(),
    "decay": pick(1.0, 0.9),
    "readout_norm": coin(),
  }
  window = pick(0, N + 3)
  every = pick(0, 2) if window else 0
  family = {
    "rope_theta": pick(100.0, 10_000.0),
    "rope_scaling": pick(*SCALINGS),
    "norm_plus_one": coin(),
    "qk_norm": coin(),
    "attention_bias": coin(),
    "post_norms": coin(),
    "embed_scale": pick(1.0, 3.0),
    "query_scale": pick(0.0, 0.2),
    "attention_softcap": pick(0.0, 5.0),
    "logit_softcap": pick(0.0, 9.0),
    "window": window,
    "global_every": every,
    "global_nope": bool(every) and coin(),
    "window_theta": pick(0.0, 77.0) if window else 0.0,
  }
  sizes = {"width": 16, "heads": K * pick(1, 2), "kv_heads": K, "head_dim": 8, "ffn": 24}
  sizes |= {"vocab_size": 264, "segment_length": N, "activation": pick("swiglu", "geglu", "gelu")}
  sizes |= {"tied_embeddings": coin(), "width_base": pick(0, 8), "lora_rank": pick(0, 2)}
  pattern = PATTERNS[int(rng.integers(len(PATTERNS)))]
  if pattern:
    systems = {name: own for name in pattern if name != "local"}
    return patterned(pattern, 2 * len(pattern), **systems, **family, **sizes)
  mixer = pick("infini", "infini", "gated_delta", "local")
  own = {} if mixer == "local" else own
  return of_model(ModelConfig(), mixer=mixer, layers=3, remat="none", **family, **sizes, **own)


def make_run(folder, model: ModelConfig, rng) -> Config:
  """A run of random parameters, with a chunk of two segments."""
  c = run_config(model)
  c = changed(c, evaluation=changed(c.evaluation, segments=2))
  run = Workdir(folder)
  run.claim(c, "a corpus")
  ByteTokenizer().save(run.tokenizer)
  params = jax.device_get(fake_params(c.model, int(rng.integers(1000))))
  with Checkpoints(run) as saved:
    saved.save_params(params)
  return c


def load(folder, **options):
  import transformers

  auto = transformers.AutoModelForCausalLM
  return auto.from_pretrained(folder, trust_remote_code=True, **options).eval()


def exported(tmp_path, rng, model):
  """The config of a run, its folder, and its export opened in transformers."""
  c = make_run(tmp_path / "run", model, rng)
  export(str(tmp_path / "run"), tmp_path / "out", 30_000, None, console(), memory=True)
  return c, tmp_path / "run", load(tmp_path / "out")


def in_pieces(torch, model, ids_BT, rng):
  """Logits of a text that is fed in pieces of random lengths."""
  cache, logits, start = None, [], 0
  while start < ids_BT.shape[1]:
    stop = start + int(rng.integers(1, 2 * model.config.segment_length))
    logits.append(model(ids_BT[:, start:stop], cache=cache).logits)
    cache = cache or model.read(ids_BT[:, start:stop])
    start = stop
  return torch.cat(logits, 1)


def steady(torch, model, ids_BT):
  """Which tokens (B, T) have logits that do not hang on the last bit of the parameters.

  A read-out that cancels to almost nothing is scaled up by its norm, with its rounding.
  """
  before, want_BTV = [x.clone() for x in model.parameters()], model(ids_BT).logits
  moved_BT = torch.zeros(ids_BT.shape)
  for _ in range(3):
    for x, old in zip(model.parameters(), before, strict=True):
      x.copy_(old * (1 + 2.0**-23 * torch.randn_like(old).sign()))
    moved_BT = torch.maximum(moved_BT, (model(ids_BT).logits - want_BTV).abs().amax(-1))
  for x, old in zip(model.parameters(), before, strict=True):
    x.copy_(old)
  return (moved_BT < CLOSE / 4).numpy()


@pytest.mark.parametrize("case", range(8))
def test_logits_equal_those_of_the_run_over_many_segments(rng, tmp_path, torch, case):
  """Any settings, any segment length; at once, in pieces, and as padded batches."""
  rng = rng.spawn(case + 1)[-1]  # another model in each case, also with a seed that is given
  c, run, model = exported(tmp_path, rng, random_model(rng))
  N = c.model.segment_length
  tokens_BT = rng.integers(0, 256, (2, int(rng.integers(8 * N, 12 * N))))
  ids_BT = torch.tensor(tokens_BT)
  want_BTV = logits_of(run, tokens_BT)
  with torch.no_grad():
    got_BTV, kept_BT = model(ids_BT).logits.numpy(), steady(torch, model, ids_BT)
    assert kept_BT.mean() > 0.5
    segments, worst = -(-tokens_BT.shape[1] // N), np.abs(got_BTV - want_BTV)[kept_BT].max()
    print(f"{c.model.title}, {segments} segments, {kept_BT.mean():.1%} of tokens: {worst:.1e}")
    near = {"atol": CLOSE, "rtol": CLOSE}
    np.testing.assert_allclose(got_BTV[kept_BT], want_BTV[kept_BT], **near)
    pieces_BTV = in_pieces(torch, model, ids_BT, rng).numpy()
    np.testing.assert_allclose(pieces_BTV[kept_BT], got_BTV[kept_BT], **near)
    last_BTV = model(ids_BT, logits_to_keep=5).logits.numpy()
    last_BT = kept_BT[:, -5:]
    np.testing.assert_allclose(last_BTV[last_BT], got_BTV[:, -5:][last_BT], **near)
    short = int(rng.integers(1, len(tokens_BT[1])))
    for left in (True, False):
      place = slice(-short, None) if left else slice(short)
      mask_BT, padded_BT = torch.ones_like(ids_BT), ids_BT.clone()
      mask_BT[1] = padded_BT[1] = 0
      mask_BT[1, place], padded_BT[1, place] = 1, ids_BT[1, :short]
      both_BTV = model(padded_BT, attention_mask=mask_BT).logits.numpy()
      np.testing.assert_allclose(both_BTV[0][kept_BT[0]], got_BTV[0][kept_BT[0]], **near)
      np.testing.assert_allclose(both_BTV[1, place], got_BTV[1, :short], atol=CLOSE, rtol=CLOSE)


@pytest.mark.parametrize("case", range(4))
def test_the_greedy_text_is_that_of_a_session(rng, tmp_path, torch, case):
  """After a text of many segments; from the text itself, and from the saved state of a session."""
  rng = rng.spawn(case + 1)[-1]
  c, run, model = exported(tmp_path, rng, random_model(rng))
  N = c.model.segment_length
  tokens = rng.integers(0, 256, int(rng.integers(3 * N, 9 * N))).tolist()
  session = Session.load(run)
  session.read(tokens)
  session.save(tmp_path / "text.state")
  logits, written = scores(session, 2 * N + 3)
  ids = torch.tensor([[session.tokenizer.bos, *tokens]])
  options = {"max_new_tokens": len(written), "do_sample": False, "output_logits": True}
  options |= {"return_dict_in_generate": True, "eos_token_id": None}
  cache, waiting = model.load_state(tmp_path / "text.state")
  assert cache.get_seq_length() == 0 and waiting.tolist()[0] == ids[0, -waiting.shape[1] :].tolist()
  for given, more in ((ids, {}), (waiting, {"cache": cache})):
    out = model.generate(given, **more, **options)
    same_text(out.sequences[0, -len(written) :].tolist(), written, out.logits, logits)


def scores(session, count):
  """The logits of a greedy continuation, and its tokens."""
  logits, tokens = [], []
  for _ in range(count):
    (lane,) = session._lanes
    while lane.unread:
      last_BV = session._feed([0])
    logits.append(np.asarray(last_BV[0]))
    tokens.append(int(logits[-1].argmax()))
    lane.take(tokens[-1:])
  return logits, tokens


def same_text(found, wanted, got, want):
  """Equal logits, and equal tokens up to the first choice between two that are equally likely."""
  for one, other, a_V, b_V in zip(found, wanted, got, want, strict=True):
    np.testing.assert_allclose(a_V[0].numpy(), b_V, atol=CLOSE, rtol=CLOSE)
    best = np.sort(b_V)[-2:]
    if one != other:
      assert best[1] - best[0] < 2 * CLOSE, "another token than the likeliest"
      return


def test_a_state_of_several_lanes_goes_on_where_it_was(rng, tmp_path, torch):
  """Lanes at different places of their segments, with different numbers of unread tokens."""
  c, run, model = exported(tmp_path, rng, random_model(rng))
  N = c.model.segment_length
  texts = [rng.integers(0, 256, int(rng.integers(N, 6 * N))).tolist() for _ in range(3)]
  session = Session.load(run, lanes=3)
  session.read(texts)
  session.save(tmp_path / "three.state")
  cache, waiting_BT = model.load_state(tmp_path / "three.state")
  more_BT = torch.tensor(rng.integers(0, 256, (3, 2 * N + 1)))
  with torch.no_grad():
    got_BTV = model(torch.cat([waiting_BT, more_BT], 1), cache=cache).logits[:, -more_BT.shape[1] :]
  for text, more_T, got_TV in zip(texts, more_BT.tolist(), got_BTV, strict=True):
    whole = np.array([[session.tokenizer.bos, *text, *more_T]])
    want_TV = logits_of(run, whole)[0, -len(more_T) :]
    np.testing.assert_allclose(got_TV.numpy(), want_TV, atol=CLOSE, rtol=CLOSE)


def test_a_cache_has_one_size_and_can_be_forked(rng, tmp_path, torch):
  c, _, model = exported(tmp_path, rng, random_model(rng))
  N = c.model.segment_length

  def size(cache):
    parts = [x for layer in cache.layers for x in (*layer[:2], *(layer.pending or ()), *layer[3:])]
    return sum(x.numel() for x in (*parts, cache.open_BC) if x is not None)

  ids = torch.tensor(rng.integers(0, 256, (1, 40 * N)))
  sizes = {size(model.read(ids[:, : segments * N])) for segments in (1, 2, 40)}
  assert len(sizes) == 1, f"the cache grows: {sizes}"
  book, question = model.read(ids), ids[:, :7]
  options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
  answers = [model.generate(question, cache=book.fork(), **options)[0].tolist() for _ in "ab"]
  whole = model.generate(torch.cat([ids, question], 1), **options)[0, ids.shape[1] :].tolist()
  assert answers[0] == answers[1] == whole and book.get_seq_length() == 40 * N
  with pytest.raises(ValueError, match="does not begin with; give the whole text, or cache.fork"):
    model.generate(question, cache=book, **options)
  for shape in ((1, 3), (2, 7), (1, 1, 7, 7)):
    with pytest.raises(ValueError, match="an attention_mask of shape .* with 1 texts of 7 tokens"):
      model(question, attention_mask=torch.ones(shape))
  with pytest.raises(ValueError, match="a cache of 1 texts with 2 texts"):
    model(torch.cat([question, question]), cache=book)


def test_lanes_are_reordered_for_beams(rng, tmp_path, torch):
  _, _, model = exported(tmp_path, rng, random_model(rng))
  ids_BT = torch.tensor(rng.integers(0, 256, (3, 50)))
  cache = model.read(ids_BT)
  order = torch.tensor([2, 0, 0])
  cache.reorder_cache(order)
  with torch.no_grad():
    got = model(ids_BT[order, :9], cache=cache).logits
    want = model(torch.cat([ids_BT, ids_BT[:, :9]], 1)).logits[:, -9:]
    again = model(torch.cat([ids_BT[order], ids_BT[order, :9]], 1)).logits[:, -9:]
  np.testing.assert_allclose(got.numpy(), again.numpy(), atol=CLOSE, rtol=CLOSE)
  assert not torch.allclose(got, want, atol=CLOSE)
  beams = {"num_beams": 3, "max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
  out = model.generate(ids_BT[:1], **beams, return_dict_in_generate=True, output_scores=True)
  with torch.no_grad():
    logp = model(out.sequences).logits[0, 49:-1].log_softmax(-1)
  total = logp[torch.arange(8), out.sequences[0, 50:]].sum()
  np.testing.assert_allclose(out.sequences_scores[0] * 8, total, atol=8 * CLOSE)


def test_the_loss_has_a_gradient_through_the_memory(rng, tmp_path, torch):
  model = of_model(random_model(rng), mixer="infini", pattern=(), rule="delta", z_correction=False)
  c, _, model = exported(tmp_path, rng, model)
  ids = torch.tensor(rng.integers(0, 256, (1, 4 * c.model.segment_length)))
  out = model(ids, labels=ids)
  want = -out.logits[0, :-1].log_softmax(-1)[torch.arange(ids.shape[1] - 1), ids[0, 1:]].mean()
  np.testing.assert_allclose(out.loss.item(), want.item(), rtol=1e-5)
  out.loss.backward()
  assert model.model.layers[0].self_attn.memory.beta.grad.abs().sum() > 0


def test_a_saved_copy_in_bfloat16_keeps_the_memory_in_float32(rng, tmp_path, torch):
  """Older versions of transformers load all of it in bfloat16."""
  import transformers

  _, _, model = exported(tmp_path, rng, of_model(random_model(rng), mixer="infini", pattern=()))
  model.save_pretrained(tmp_path / "again")
  again = load(tmp_path / "again", torch_dtype=torch.bfloat16)
  assert again.model.embed_tokens.weight.dtype == torch.bfloat16
  assert torch.isfinite(again(torch.arange(40)[None]).logits).all()
  if hasattr(transformers.PreTrainedModel, "_keep_in_fp32_modules_strict"):
    assert again.model.layers[0].self_attn.memory.beta.dtype == torch.float32
  again = load(tmp_path / "again", torch_dtype=torch.float32)
  for one, other in zip(model.parameters(), again.parameters(), strict=True):
    np.testing.assert_array_equal(one.detach().numpy(), other.detach().numpy())


def test_a_state_of_another_model_is_refused_in_one_line(rng, tmp_path, torch):
  _, run, model = exported(tmp_path, rng, of_model(random_model(rng), mixer="infini", pattern=()))
  session = Session.load(run)
  session.read(list(b"a text"))
  session.save(tmp_path / "a.state")
  params = jax.tree.map(lambda x: x * 1.5, jax.device_get(session.run.engine.params))
  other = Workdir(tmp_path / "other")
  other.claim(Workdir(run).config(), "a corpus")
  ByteTokenizer().save(other.tokenizer)
  with Checkpoints(other) as saved:
    saved.save_params(params)
  session = Session.load(other.path)
  session.read(list(b"a text"))
  session.save(tmp_path / "other.state")
  model.load_state(tmp_path / "a.state")
  with pytest.raises(ValueError, match=r"a state of other parameters .*; export the run") as error:
    model.load_state(tmp_path / "other.state")
  assert "\n" not in str(error.value) and str(other.path) in str(error.value)
  assert os.path.exists(tmp_path / "out" / "infini_state.py")
