"""Answers the questions of needles from the text alone, with regular expressions."""

import collections
import re

ASKED = re.compile(r" (Wh[^?]*)\? ([^?]*)$", re.DOTALL)
NUMBER = re.compile(r" (?:A|The) number of the (\w+ \w+) is (\d+)\.")
LET = re.compile(r" Let ([A-Z]{3}) be (\w+)\.")
DONE = re.compile(r" ([A-Z][a-z]+) (went to|walked to|took|picked up) the (\w+(?: \w+)?)\.")


def solve(text):
  """The answers that follow from a text with a question at its end, and the answers written there.

  Fails if the text allows more than one answer.
  """
  asked = ASKED.search(text)
  assert asked, f"no question at the end of {text[-300:]!r}"
  question, written = asked.groups()
  body = text[: asked.start()]
  for pattern, solver in SOLVERS.items():
    if found := re.fullmatch(pattern, question):
      lead, answers = solver(body, *found.groups())
      assert written.startswith(f"{lead} "), f"{written!r} does not begin with {lead!r}"
      return answers, written.removeprefix(f"{lead} ").split(", ")
  raise AssertionError(f"a question of no family: {question!r}")


def number_of(body, key):
  values = [value for name, value in NUMBER.findall(body) if name == key]
  assert len(values) == 1, f"{key} has {len(values)} numbers"
  return f"The number of the {key} is", values


def numbers_of_one(body, key):
  values = [value for name, value in NUMBER.findall(body) if name == key]
  assert len(values) == len(set(values)) > 0
  return "They are", values


def numbers_of_many(body, keys):
  found = [number_of(body, key)[1][0] for key in keys.split(", the ")]
  assert len(found) == len(NUMBER.findall(body)), "all numbers of the text are asked for"
  return "They are", found


def names_of(body, value):
  means, names = {}, []
  for name, meaning in LET.findall(body):
    assert name not in means, f"{name} is given two meanings"
    assert meaning.isdigit() or meaning in means, f"{meaning} is used before it means anything"
    means[name] = means.get(meaning, meaning)
    if means[name] == value:
      names.append(name)
  return "They are", names


def place_of(body, asked):
  where, holder = {}, {}
  for who, did, what in DONE.findall(body):
    if did in ("took", "picked up"):
      assert what not in holder, f"the {what} is taken twice"
      holder[what] = who
    else:
      where[who] = what
  thing = asked.removeprefix("the ")
  who = holder[thing] if asked != thing else asked
  lead = f"{asked[0].upper()}{asked[1:]} is in the"
  return lead, [where[who]]


def commonest(body, count):
  counts = collections.Counter(re.findall(r" ([a-z]+-[a-z]+)(?=[ .]|$)", body)).most_common()
  count = int(count)
  least, most = counts[count - 1][1], counts[count][1] if len(counts) > count else 0
  assert least >= 5 * most, f"common words {least} times, others {most}: too near"
  return "They are", sorted(word for word, _ in counts[:count])


def most_frequent(body, count):
  counts = collections.Counter(re.findall(r" ((?:[a-z][aeiou]){3})(?=[ .]|$)", body)).most_common()
  counts, count = [*counts, ("", 0)], int(count)
  ranks = [times for _, times in counts[: count + 1]]
  assert len(set(ranks)) == count + 1, f"two words are as frequent: {ranks}"
  return "They are", [word for word, _ in counts[:count]]


SOLVERS = {
  r"What is the number of the (\w+ \w+)": number_of,
  r"Which numbers does the (\w+ \w+) have, in the order of the text": numbers_of_one,
  r"What are the numbers of the (.*), in this order": numbers_of_many,
  r"Which names stand for (\d+), in the order of the text": names_of,
  r"Where is ([\w ]+) now": place_of,
  r"Which (\d+) words occur most often, in the order of the alphabet": commonest,
  r"Which (\d+) words occur most often, the most frequent first": most_frequent,
}
