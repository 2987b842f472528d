// Which words of an answer the reading helped, and where these words are in the text.

const PASSAGE = 420; // characters
const SHOWN = 3; // passages
const NAMED = 0.5; // the least nats that a word has saved, to be looked for in the text
const COMMON = 8; // a word in more than one of so many passages names no place
const FULL = 4; // nats of the strongest colour
const WORD = /[\p{L}\p{N}]+/gu;

/**
 * The words of an answer: tokens up to the next white space.
 *
 * @param tokens objects with text and logprob, which is with the reading.
 * @param without the log-probabilities of the same tokens without it.
 * @returns objects with text and saved: nats without the reading, minus nats with it.
 */
export function words(tokens, without) {
  const made = [];
  tokens.forEach(({ text, logprob }, i) => {
    const last = made.at(-1);
    const begins = !last || (last.text.trim() && /^\s/.test(text));
    if (begins) made.push({ text: "", saved: 0 });
    made.at(-1).text += text;
    made.at(-1).saved += logprob - without[i];
  });
  return made;
}

/** How strong the colour of a word is, 0 to 1. */
export function strength(saved) {
  return Math.min(Math.abs(saved) / FULL, 1) * 0.6;
}

/** The passages of a text that have most of the words that were helped; rare words count more. */
export function passages(text, helped) {
  const weights = new Map();
  for (const { text: word, saved } of helped) {
    if (saved < NAMED) continue;
    for (const plain of parts(word)) {
      if (plain.length > 2) weights.set(plain, Math.max(saved, weights.get(plain) ?? 0));
    }
  }
  if (!weights.size) return [];
  const cut = split(text).map((passage) => {
    return { passage, found: new Set(parts(passage).filter((part) => weights.has(part))) };
  });
  const counts = new Map();
  for (const word of cut.flatMap(({ found }) => [...found])) {
    counts.set(word, (counts.get(word) ?? 0) + 1);
  }
  const rare = (word) => Math.log((cut.length + 1) / counts.get(word));
  const places = (word) => counts.get(word) <= Math.max(1, cut.length / COMMON);
  return cut
    .map(({ passage, found: all }) => {
      const found = new Set([...all].filter(places));
      const score = [...found].reduce((sum, word) => sum + weights.get(word) * rare(word), 0);
      return { passage: passage.trim(), found, score };
    })
    .filter(({ score }) => score > 0)
    .sort((a, b) => b.score - a.score)
    .slice(0, SHOWN);
}

/** A passage in pieces: objects with text, and whether it is one of the words. */
export function marked(passage, found) {
  const pieces = [];
  let end = 0;
  for (const match of passage.matchAll(WORD)) {
    if (!found.has(match[0].toLowerCase())) continue;
    pieces.push({ text: passage.slice(end, match.index), is: false });
    pieces.push({ text: match[0], is: true });
    end = match.index + match[0].length;
  }
  pieces.push({ text: passage.slice(end), is: false });
  return pieces;
}

function parts(text) {
  return text.toLowerCase().match(WORD) ?? [];
}

function split(text) {
  const cut = [];
  let begin = 0;
  while (begin < text.length) {
    let end = begin + PASSAGE;
    while (end < text.length && !/\s/.test(text[end])) end++;
    cut.push(text.slice(begin, end));
    begin = end;
  }
  return cut;
}
