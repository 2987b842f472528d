"""What the needles' sentences are made of: everyday words and invented ones, drawn afresh.

No word of a list is the beginning of another, so that an answer that is written is over with its
last letter. Numbers, names, places and words of lists are values: about a tenth of each, fixed by
the seed, is held out for evaluation.
"""

import hashlib
from collections.abc import Callable

import numpy as np

ADJECTIVES = """
  amber ancient azure bent bitter blue bold brave bright broken busy calm careful cheap clean clever
  cloudy cold copper crooked curly damp dark deep distant dry dusty early eager empty faded fancy
  fast flat foggy fresh friendly frozen gentle giant golden grand gray green happy heavy hollow
  humble hungry iron lazy light little lonely loud lucky mild modern muddy narrow new noisy odd old
  orange pale patient plain polite proud purple quick quiet rapid rare red rich round rusty sad
  secret sharp short shy silent silver simple sleepy slow small smooth soft solid square steep
  sticky stormy strange sunny sweet tall tame tidy tiny velvet violet warm wet white wide wild
  wise wooden yellow young
""".split()
NOUNS = """
  acorn anchor apple arrow badge banjo barrel basket beacon bell bicycle blanket bottle bridge
  brush bucket button camera candle canoe carpet castle chair cherry clock cloud comet compass
  cradle crown cushion diamond donkey door drum eagle engine falcon feather fence fiddle flag flute
  forest fountain garlic ginger glove goose guitar hammer harbor harp hat helmet hill honey
  horse island jacket jar kettle kite ladder lamp lantern lemon letter lion marble meadow mirror
  mitten mountain needle oar olive onion otter oven owl paddle parrot pearl pebble pencil piano
  pigeon pillow planet plum pocket pony puppet rabbit raft ribbon river rocket rope saddle sailor
  salmon scarf shell ship shovel sparrow spoon stone stove sword table tiger tower trumpet tulip
  tunnel turtle umbrella valley violin wagon walnut whistle window wolf zebra
""".split()
ROOMS = """
  attic bakery barn basement bathroom bedroom cellar chapel classroom courtyard garage garden
  gallery hallway kitchen laundry library market museum nursery office orchard pantry park pharmacy
  playground porch school shed stable station studio theater workshop
""".split()
THINGS = """
  acorn anchor apple badge banjo basket bell blanket bottle brush bucket button camera candle clock
  coin compass crown cushion drum feather fiddle flag flute glove hammer harp hat helmet jacket jar
  kettle kite ladder lamp lantern lemon letter marble mirror mitten needle
""".split()
PEOPLE = """
  Ada Boris Clara Diego Edith Felix Greta Hugo Irene Jonas Karin Lionel Marta Nadia Oscar Paula
  Quentin Rosa Stefan Tilda Ulrich Vera Walter Xenia Yusuf Zora Amir Bianca Cosimo Dora Emil
  Farida Gustav Hanna Igor Judith
""".split()
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"


class Draw:
  """Draws what one text says.

  Args:
    rng: where everything comes from.
    seed: of the run, which fixes what is held out.
    held_out: whether values are drawn among those that training never sees, or among the others.
  """

  def __init__(self, rng: np.random.Generator, seed: int, held_out: bool):
    self.rng, self._seed, self._held_out = rng, seed, held_out

  def keys(self, count: int) -> list[str]:
    """Different ones, such as `quiet harbor`; they are no values, and none is held out."""
    return self._several(count, lambda: self._pair(ADJECTIVES, " ", NOUNS), values=False)

  def people(self, count: int) -> list[str]:
    """Different first names, none held out."""
    return self.rng.permutation(PEOPLE)[:count].tolist()

  def things(self, count: int) -> list[str]:
    """Different things to carry, none held out."""
    return self.rng.permutation(THINGS)[:count].tolist()

  def numbers(self, count: int, digits: int) -> list[str]:
    """Different numbers of so many digits, the first of which is no 0."""

    def one() -> str:
      figures = self.rng.integers(0, 10, digits)
      figures[0] = self.rng.integers(1, 10)
      return "".join(map(str, figures))

    return self._several(count, one)

  def names(self, count: int) -> list[str]:
    """Different names of variables, such as `QZK`."""
    letters = lambda: "".join(chr(65 + i) for i in self.rng.integers(0, 26, 3))
    return self._several(count, letters)

  def places(self, count: int) -> list[str]:
    """Different places, such as `quiet garden`."""
    return self._several(count, lambda: self._pair(ADJECTIVES, " ", ROOMS))

  def words(self, count: int) -> list[str]:
    """Different words for a list, such as `quiet-harbor`; fewer where there are not so many."""
    found: list[str] = []
    for i in self.rng.permutation(len(ADJECTIVES) * len(NOUNS)).tolist():
      if len(found) == count:
        break
      word = f"{ADJECTIVES[i // len(NOUNS)]}-{NOUNS[i % len(NOUNS)]}"
      if self._is_held_out(word) == self._held_out:
        found.append(word)
    return found

  def invented(self, count: int) -> list[str]:
    """Different words that nobody knows, such as `tomiku`."""
    syllable = lambda: self._pair(CONSONANTS, "", VOWELS)
    return self._several(count, lambda: syllable() + syllable() + syllable())

  def _pair(self, first: list[str] | str, joint: str, second: list[str] | str) -> str:
    a, b = int(self.rng.integers(len(first))), int(self.rng.integers(len(second)))
    return first[a] + joint + second[b]

  def _several(self, count: int, one: Callable[[], str], values: bool = True) -> list[str]:
    found: dict[str, None] = {}  # in the order in which they were drawn
    while len(found) < count:
      text = one()
      if not values or self._is_held_out(text) == self._held_out:
        found[text] = None
    return list(found)

  def _is_held_out(self, text: str) -> bool:
    digest = hashlib.blake2b(f"{self._seed} {text}".encode(), digest_size=4).digest()
    return int.from_bytes(digest) / 2**32 < 0.1
