"""The words of needles, and the letters of invented words.

No word of a list is the beginning of another word, so that an answer is complete at its last
letter.
"""

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
