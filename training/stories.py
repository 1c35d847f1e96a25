# ruff: noqa: E501
"""Stories, poems, letters and lists from templates: answers of 60 to 300 tokens."""

from __future__ import annotations

from random import Random

from turns import Turn, listed, pick

HEROES = {
    "fox": "clever", "bear": "strong", "rabbit": "quick", "owl": "wise", "mouse": "tiny", "wolf": "brave",
    "cat": "curious", "dog": "loyal", "duck": "cheerful", "horse": "proud", "frog": "funny", "lion": "kind",
    "penguin": "patient", "robot": "shiny", "dragon": "gentle", "girl": "bold", "boy": "dreamy", "whale": "calm",
    "elephant": "big", "bee": "busy", "king": "lonely", "sailor": "young", "wizard": "old", "knight": "noble",
}  # fmt: skip
PLACES = ["a quiet forest", "a small village by the sea", "a green valley", "an old castle", "a house on a hill",
          "a busy city", "a snowy mountain", "a sunny island", "a deep cave", "a garden full of flowers"]  # fmt: skip
OBJECTS = ["a golden key", "a silver bell", "an old map", "a blue lantern", "a shiny stone", "a wooden boat",
           "a red balloon", "a letter without a name", "a box that hummed", "a broken clock"]  # fmt: skip
FRIENDS = ["a sparrow", "a turtle", "a hedgehog", "a squirrel", "an old goat", "a snail", "a swan", "a deer"]
TROUBLES = [
    ("a storm came and the river broke over its banks", "built a bridge of branches", "together is better than alone"),
    ("the path was lost in thick fog", "followed the sound of the water", "patience finds the way"),
    ("a big rock lay in the middle of the road", "pushed it aside, a little at a time", "small steps move great things"),
    ("all the lights in the land went out", "carried a small light from door to door", "one light can wake many"),
    ("the bridge had fallen into the river", "tied ropes from one side to the other", "a good plan beats a strong arm"),
    ("everybody was hungry and the winter was long", "shared the last bread with all", "what you share grows"),
    ("a voice in the dark cried for help", "went in, although it was afraid", "courage is to go on with a shaking heart"),
    ("the well of the village had run dry", "dug deeper every day", "those who go on will find water"),
]  # fmt: skip
TOPICS = {
    "the sea": ("waves", "blue and wide", "sing"), "the moon": ("silver light", "far and bright", "shine"),
    "the rain": ("drops", "soft and grey", "fall"), "the wind": ("leaves", "wild and free", "dance"),
    "spring": ("flowers", "fresh and green", "bloom"), "winter": ("snow", "cold and white", "rest"),
    "summer": ("days", "long and warm", "glow"), "autumn": ("leaves", "red and gold", "fall"),
    "a river": ("water", "clear and cold", "run"), "a tree": ("branches", "tall and old", "grow"),
    "the night": ("stars", "dark and deep", "sleep"), "the stars": ("little lights", "high and still", "gleam"),
    "a cat": ("paws", "soft and sly", "creep"), "a fox": ("steps", "quick and red", "run"),
    "the forest": ("trees", "deep and green", "whisper"), "a node": ("tokens", "quick and small", "flow"),
    "computers": ("lights", "small and green", "blink"), "the sun": ("beams", "warm and gold", "shine"),
}  # fmt: skip
TIPS = {
    "sleeping well": ["go to bed at the same time", "keep the room dark and cool", "put the phone away early",
                      "drink no coffee in the evening", "take a short walk before bed"],
    "learning": ["practise a little every day", "explain it in your own words", "take breaks", "sleep enough",
                 "ask when you do not understand"],
    "saving energy": ["turn off lights that you do not need", "close the windows when you heat", "dry clothes in the "
                      "air", "use a bicycle for short ways", "cook with a lid on the pot"],
    "running Groundswell": ["start with groundswell up", "add your own machines with groundswell nodes add",
                            "watch them with groundswell status", "keep your API keys secret",
                            "run groundswell doctor when something is wrong"],
    "making friends": ["listen well", "smile", "remember names", "be honest", "share what you like"],
    "gardening": ["water in the morning", "give plants enough light", "loosen the soil", "pull the weeds early",
                  "be patient"],
    "cooking": ["read the recipe first", "use fresh things", "taste as you go", "keep the knife sharp",
                "clean up as you cook"],
}  # fmt: skip


def story(rng: Random) -> Turn:
    hero = pick(rng, sorted(HEROES)) if rng.random() > 0.12 else "fox"
    trait, place, thing, friend = HEROES[hero], pick(rng, PLACES), pick(rng, OBJECTS), pick(rng, FRIENDS)
    trouble, deed, lesson = pick(rng, TROUBLES)
    a = "an" if trait[0] in "aeiou" else "a"
    mate = friend.split(" ", 1)[1]
    parts = [
        f"Once upon a time there was {a} {trait} {hero} who lived in {place}.",
        pick(rng, [f"Every morning the {hero} went out to look at the world, and every evening it came home with a "
                   "new question.",
                   f"The {hero} had all it needed, but it often wondered what lay behind the hills."]),
        f"One day the {hero} found {thing}. \"Where does this come from?\" it asked.",
        pick(rng, [f"It asked {friend}, who said: \"Follow the river to its end, and you will know.\"",
                   f"Just then {friend} came by and said: \"I have seen such a thing far away from here.\""]),
        f"So the {hero} and the {mate} set out together.",
        pick(rng, ["They walked through fields and over hills, and they told each other stories on the way.",
                   "They walked for three days and three nights, and the stars showed them the way."]),
        f"But then {trouble}.",
        pick(rng, [f"The {mate} was afraid and wanted to turn back.", f"\"What shall we do?\" asked the {mate}."]),
        f"\"Do not worry,\" said the {trait} {hero}. It thought for a while, and then it {deed}.",
        pick(rng, [f"The {mate} helped as well as it could, and in the end all was well.",
                   "It took a long time, but they did not give up."]),
        f"When they came home, everybody wanted to hear what had happened. The {hero} put {thing.split(' ', 1)[1]} "
        "on the table and told the whole story.",
        f"And since that day the {hero} and the {mate} have been the best of friends. They had learned that {lesson}.",
        "The end.",
    ]  # fmt: skip
    if rng.random() < 0.3:
        parts = [parts[0], parts[2], parts[4], parts[6], parts[8], parts[11], parts[12]]
        ask = pick(rng, [f"Tell me a short story about a {hero}.", f"A short story about a {hero}, please.",
                         f"Write a short story about a {hero}."])  # fmt: skip
        return Turn(ask, " ".join(parts), None)
    article = "an" if hero[0] in "aeiou" else "a"
    ask = pick(rng, [f"Tell me a story about {article} {hero}.", f"Write a story about {article} {hero}.",
                     f"Can you tell me a story about {article} {hero}?", f"story about {article} {hero}",
                     f"Please tell a long story about {article} {hero}.", f"I want a story with {article} {hero}.",
                     "Tell me a story.", "Can you tell me a story?"])  # fmt: skip
    return Turn(ask, "\n\n".join([" ".join(parts[:4]), " ".join(parts[4:10]), " ".join(parts[10:])]), None)


def poem(rng: Random) -> Turn:
    topic = pick(rng, sorted(TOPICS))
    things, looks, do = TOPICS[topic]
    lines = [
        pick(rng, [f"I sit and think of {topic} today,", f"Oh {topic}, you are {looks},"]),
        pick(rng, [f"where {things} {do} and softly play.", f"I hear how your {things} {do}."]),
        pick(rng, ["The world is wide, the hours are slow,", "The clouds go by, the hours go,"]),
        pick(rng, ["and all that comes will also go.", "and quiet are the things I know."]),
        "",
        f"So {looks} it seems to me,",
        "as if it could for ever be.",
        pick(rng, ["I close my eyes, I breathe, I stay,", "I take a breath, I find my way,"]),
        f"and {topic} gives me a brighter day.",
    ]  # fmt: skip
    ask = pick(rng, [f"Write a poem about {topic}.", f"Write a short poem about {topic}.", f"poem about {topic}",
                     f"Can you write a poem about {topic}?", f"Give me a poem about {topic}."])  # fmt: skip
    return Turn(ask, "\n".join(lines), None)


def tips(rng: Random) -> Turn:
    topic, advice = pick(rng, sorted(TIPS.items()))
    n = rng.randrange(3, 6)
    number = {3: "three", 4: "four", 5: "five"}[n]
    ask = pick(rng, [f"Give me {number} tips for {topic}.", f"{number.capitalize()} tips for {topic}, please.",
                     f"List {n} tips for {topic}.", f"Give me {n} tips for {topic}."])  # fmt: skip
    lines = [f"{k}. {a[0].upper() + a[1:]}." for k, a in enumerate(advice[:n], 1)]
    return Turn(ask, f"Here are {number} tips for {topic}:\n" + "\n".join(lines), None)


def sentence(rng: Random) -> Turn:
    hero = pick(rng, sorted(HEROES))
    place = pick(rng, PLACES)
    ask = pick(rng, [f"Write a sentence about a {hero}.", f"Make a sentence with the word {hero}.",
                     f"Give me one sentence about a {hero}."])  # fmt: skip
    return Turn(ask, f"The {HEROES[hero]} {hero} walked through {place}.", None)


def animals(rng: Random) -> Turn:
    pool = ["dog", "cat", "cow", "horse", "sheep", "pig", "duck", "lion", "wolf", "fox", "bear", "owl"]
    n = rng.randrange(3, 8)
    words = {3: "three", 4: "four", 5: "five", 6: "six", 7: "seven"}
    ask = pick(rng, [f"Name {words[n]} animals.", f"List {n} animals.", f"Tell me {words[n]} animals."])
    return Turn(ask, f"Here are {words[n]} animals: {listed(pool[:n])}.", None)


STORIES = [(9, story), (4, poem), (3, tips), (1, sentence), (1, animals)]
