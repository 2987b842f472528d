"""The peers of `peer.py`, in PyTorch: each in its own process, without JAX.

    python benchmarks/peer_torch.py NAME SHAPE      SHAPE is JSON; see `peer.py`

It prints the number of parameters and its versions, and then, for each line that it reads, the
seconds of one step, those of its CPUs, and the peak of its resident memory in bytes. A step is loss
and gradient, or one token, if `decode` is in the shape.
"""

import importlib.metadata
import json
import resource
import sys
import time

import torch


class Plain(torch.nn.Module):
  """A decoder of the same shape with PyTorch's own attention over the whole text, and no memory."""

  def __init__(self, shape: dict):
    super().__init__()
    nn, D, inner = torch.nn, shape["width"], shape["heads"] * shape["head_dim"]
    self.heads, self.embed = shape["heads"], nn.Embedding(shape["vocab"], D)
    self.layers = nn.ModuleList()
    for _ in range(shape["layers"]):
      parts = {
        "norm": nn.RMSNorm(D),
        "qkv": nn.Linear(D, 3 * inner, bias=False),
        "out": nn.Linear(inner, D, bias=False),
        "ffn_norm": nn.RMSNorm(D),
        "up": nn.Linear(D, 2 * shape["ffn"], bias=False),
        "down": nn.Linear(shape["ffn"], D, bias=False),
      }
      self.layers.append(nn.ModuleDict(parts))
    self.norm, self.head = nn.RMSNorm(D), nn.Linear(D, shape["vocab"], bias=False)

  def forward(self, tokens):
    """The loss of predicting each next token."""
    F = torch.nn.functional
    x = self.embed(tokens[:, :-1])
    for layer in self.layers:
      q, k, v = layer["qkv"](layer["norm"](x)).chunk(3, -1)
      q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (q, k, v))
      y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
      x = x + layer["out"](y.transpose(1, 2).flatten(2))
      up, gate = layer["up"](layer["ffn_norm"](x)).chunk(2, -1)
      x = x + layer["down"](up * F.gelu(gate, approximate="tanh"))
    return F.cross_entropy(self.head(self.norm(x)).transpose(1, 2), tokens[:, 1:])


def model(name: str, shape: dict):
  """A peer, and a function from tokens to its gradient."""
  if name == "sdpa":
    plain = Plain(shape)
    return plain, lambda tokens: plain(tokens).backward()
  from infini_transformer_pytorch import InfiniTransformerWrapper

  peer = infini(name, shape)
  # Its default cuts the gradient every two segments. Here it goes through all, as ours.
  whole = InfiniTransformerWrapper(
    peer, segment_length=shape["segment"], detach_mems_every_num_segments=10**9
  )
  return peer, lambda tokens: whole(tokens, backward=True)


def infini(rule: str, shape: dict):
  """The model of infini-transformer-pytorch."""
  from infini_transformer_pytorch import InfiniTransformer

  return InfiniTransformer(
    num_tokens=shape["vocab"],
    dim=shape["width"],
    depth=shape["layers"],
    dim_head=shape["head_dim"],
    heads=shape["heads"],
    use_mem_delta_rule=rule == "delta",
  )


def writer(name: str, shape: dict):
  """A peer, and a function that writes its next token, in the middle of the second segment."""
  peer, N = infini(name, shape).eval(), shape["segment"]

  @torch.inference_mode()
  def tokens(text):
    _, _, memories = peer(text[:, :N], return_new_memories=True)
    logits, cache, _ = peer(text[:, N : N + N // 2], past_memories=memories)
    while True:
      token = logits[:, -1:].argmax(-1)
      yield token.item()
      logits, cache, _ = peer(token, past_memories=memories, cached_kv=cache)

  text = torch.randint(0, shape["vocab"], (1, 2 * N))
  writing = tokens(text)
  return peer, lambda _: next(writing)


def main() -> None:
  """Takes a step for each line that it reads."""
  name, shape = sys.argv[1], json.loads(sys.argv[2])
  torch.manual_seed(0)
  torch.set_num_threads(shape["threads"])
  peer, step = (writer if shape["decode"] else model)(name, shape)
  tokens = torch.randint(0, shape["vocab"], (shape["lanes"], shape["tokens"] + 1))
  packages = ["torch"] + ["infini-transformer-pytorch"] * (name != "sdpa")
  versions = ", ".join(f"{one} {importlib.metadata.version(one)}" for one in packages)
  print(sum(p.numel() for p in peer.parameters()), versions, flush=True)
  for _ in sys.stdin:
    peer.zero_grad(set_to_none=True)
    began, used = time.perf_counter(), time.process_time()
    step(tokens)
    seconds, cpu = time.perf_counter() - began, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(seconds, cpu, peak, flush=True)


if __name__ == "__main__":
  main()
