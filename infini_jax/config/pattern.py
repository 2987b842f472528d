"""Layers with several memory systems, `model.pattern`: the facts of the model and of its layers."""

import dataclasses
from typing import TYPE_CHECKING, Any

from infini_jax.config.systems import SYSTEMS, System


@dataclasses.dataclass(frozen=True)
class Pattern:
  """The facts of `System`, joined from those of the systems.

  A layer's own system decides what the layer does; these facts are of the whole state.
  """

  order: tuple[str, ...]  # `model.pattern`: layer l has the system of order[l % len(order)]
  systems: tuple[Any, ...]  # the section of each system, in the order of its first layer

  layered = True
  moves_borders = False

  @property
  def remembers(self) -> bool:
    """Whether there is a memory that an evaluation can take away. A whole cache is none."""
    return any(map(_is_memory, self.systems))

  @property
  def grows(self) -> bool:
    """Whether some state grows with each token."""
    return any(one.grows for one in self.systems)

  @property
  def gated(self) -> bool:
    """Whether some layers have gates."""
    return any(one.gated for one in self.systems)

  @property
  def windows(self) -> bool:
    """Whether all layers support windows, score scales and soft caps."""
    return all(one.windows for one in self.systems)

  @property
  def kernels(self) -> bool:
    """Whether `run.attention` chooses the kernel of some layers."""
    return any(one.kernels for one in self.systems)

  @property
  def any_length(self) -> bool:
    """Whether no layer's state depends on the length of a segment."""
    return all(one.any_length for one in self.systems)

  @property
  def exports(self) -> bool:
    """Whether all parameters are those of Llama, and gates."""
    return all(one.exports for one in self.systems)

  @property
  def matrix(self) -> bool:
    """Whether some layers have the state M, z."""
    return any(one.matrix for one in self.systems)

  @property
  def affine(self) -> bool:
    """Whether a segment changes some memory by an affine map."""
    return any(one.affine for one in self.systems)

  @property
  def label(self) -> str:
    """The labels of the systems."""
    return ", ".join(one.label for one in self.systems if one.label)

  def with_memory(self, layers: int) -> tuple[bool, ...]:
    """Which of the layers have a memory: no caches of the whole text, no local layers."""
    memories = {one.name for one in self.systems if _is_memory(one)}
    return tuple(self.order[layer % len(self.order)] in memories for layer in range(layers))

  def ablated(self, layers: int) -> tuple[bool, ...]:
    """The layers with a memory: an ablation leaves local and full attention as they are."""
    return self.with_memory(layers)

  def not_divided(self, implementation: str) -> tuple[str, str] | None:
    """The first system whose segments cannot be divided among devices."""
    for one in self.systems:
      if wrong := one.not_divided(implementation):
        return wrong[0], f"{one.name!r} layers: {wrong[1]}"
    return None

  def not_additive(self) -> str | None:
    """The first system whose state is not a sum. Local layers have none, which is a sum too."""
    found = (one.not_additive() for one in self.systems if one.remembers)
    return next((setting for setting in found if setting is not None), None)

  def not_exported(self) -> str | None:
    """The first setting that no published format supports."""
    found = (one.not_exported() for one in self.systems)
    return next((setting for setting in found if setting is not None), None)


def _is_memory(system: System) -> bool:
  return system.remembers and not system.grows


def sections_of(mixer: str, pattern: tuple[str, ...], given: Any) -> Any:
  """The section of a memory system, or the `Pattern` of several.

  Args:
    mixer: `model.mixer`.
    pattern: `model.pattern`; it is used instead of `mixer`, if it is not empty.
    given: a section, a `Pattern`, or a tuple of sections; others than these have the defaults.
  """
  sections = given.systems if isinstance(given, Pattern) else given
  sections = sections if isinstance(sections, tuple) else (sections,)

  def section(name):
    system = SYSTEMS.get(name, System)
    return next((one for one in sections if type(one) is system), None) or system()

  if pattern:
    return Pattern(pattern, tuple(map(section, dict.fromkeys(pattern))))
  return section(mixer)


class BySystem:
  """What a model is by its memory systems; a base class of `ModelConfig`."""

  if TYPE_CHECKING:
    mixer: str
    pattern: tuple[str, ...]
    layers: int
    memory: Any

  @property
  def by_system(self) -> dict[str, Any]:
    """For each memory system, a model of its layers alone, without a pattern."""
    if not self.pattern:
      return {self.mixer: self}
    model: Any = self
    alone = lambda one: dataclasses.replace(
      model, mixer=one.name, pattern=(), memory=one, layers=len(self.layers_of(one.name))
    )
    return {one.name: alone(one) for one in self.memory.systems}

  def layers_of(self, system: str) -> tuple[int, ...]:
    """The layers of a memory system, from 0."""
    order = self.pattern or (self.mixer,)
    return tuple(layer for layer in range(self.layers) if order[layer % len(order)] == system)

  @property
  def setting(self) -> str:
    """The field that names the memory systems, and its value, for messages."""
    return f"model.pattern={self.pattern}" if self.pattern else f"model.mixer={self.mixer!r}"

  @property
  def title(self) -> str:
    """The name of the memory system, or the names of the pattern."""
    return "+".join(self.pattern) or self.mixer

  @property
  def is_plain(self) -> bool:
    """Whether every layer attends to the whole text, as in a published model."""
    return all(own.memory.grows for own in self.by_system.values())
