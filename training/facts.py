# ruff: noqa: E501
"""General knowledge for the demonstration corpus: small, checkable facts and many ways to ask for them.

Every sentence here was written for this project; nothing is taken from other texts.
"""

from __future__ import annotations

from random import Random

from turns import Turn, listed, pick

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon",
    "the United Kingdom": "London", "Ireland": "Dublin", "the Netherlands": "Amsterdam", "Belgium": "Brussels",
    "Switzerland": "Bern", "Austria": "Vienna", "Poland": "Warsaw", "Norway": "Oslo", "Sweden": "Stockholm",
    "Denmark": "Copenhagen", "Finland": "Helsinki", "Greece": "Athens", "Turkey": "Ankara", "Hungary": "Budapest",
    "the Czech Republic": "Prague", "Romania": "Bucharest", "Ukraine": "Kyiv", "Russia": "Moscow",
    "Japan": "Tokyo", "China": "Beijing", "India": "New Delhi", "South Korea": "Seoul", "Thailand": "Bangkok",
    "Vietnam": "Hanoi", "Indonesia": "Jakarta", "Australia": "Canberra", "New Zealand": "Wellington",
    "Canada": "Ottawa", "the United States": "Washington, D.C.", "Mexico": "Mexico City", "Cuba": "Havana",
    "Brazil": "Brasília", "Argentina": "Buenos Aires", "Chile": "Santiago", "Peru": "Lima",
    "Colombia": "Bogotá", "Egypt": "Cairo", "Kenya": "Nairobi", "Morocco": "Rabat", "Ghana": "Accra",
    "Iceland": "Reykjavík",
}  # fmt: skip
CONTINENTS = {
    "Europe": "France Germany Italy Spain Portugal Ireland Belgium Austria Poland Norway Sweden Greece Iceland",
    "Asia": "Japan China India Thailand Vietnam Indonesia",
    "Africa": "Egypt Kenya Morocco Ghana",
    "South America": "Brazil Argentina Chile Peru Colombia",
    "North America": "Canada Mexico Cuba",
}
COLOURS = {
    "the sky on a clear day": "blue", "grass": "green", "a banana": "yellow", "snow": "white", "coal": "black",
    "a strawberry": "red", "a carrot": "orange", "a lemon": "yellow", "milk": "white", "chocolate": "brown",
    "a ripe tomato": "red", "a leaf in summer": "green", "a flamingo": "pink", "an elephant": "grey",
    "a raven": "black", "the sun": "yellow", "the sea": "blue", "a frog": "green", "blood": "red", "a plum": "purple",
}  # fmt: skip
MIXES = {
    ("blue", "yellow"): "green", ("red", "yellow"): "orange", ("red", "blue"): "purple",
    ("black", "white"): "grey", ("red", "white"): "pink",
}  # fmt: skip
# name: sound verb, young, legs, food, home, remark
ANIMALS = {
    "dog": ("barks", "puppy", 4, "meat and kibble", "with people", "is loyal and likes to play"),
    "cat": ("meows", "kitten", 4, "fish and mice", "with people", "sleeps most of the day"),
    "cow": ("moos", "calf", 4, "grass", "on a farm", "gives milk"),
    "horse": ("neighs", "foal", 4, "grass and hay", "on a farm", "can run very fast"),
    "sheep": ("bleats", "lamb", 4, "grass", "on a farm", "gives wool"),
    "pig": ("oinks", "piglet", 4, "roots and grain", "on a farm", "is very clever"),
    "duck": ("quacks", "duckling", 2, "plants and insects", "on a pond", "swims well"),
    "hen": ("clucks", "chick", 2, "seeds", "on a farm", "lays eggs"),
    "lion": ("roars", "cub", 4, "meat", "on the savanna", "lives in a group called a pride"),
    "wolf": ("howls", "pup", 4, "meat", "in the forest", "lives in a pack"),
    "frog": ("croaks", "tadpole", 4, "insects", "near a pond", "starts its life in the water"),
    "owl": ("hoots", "owlet", 2, "mice", "in the forest", "hunts at night"),
    "bear": ("growls", "cub", 4, "berries, fish and honey", "in the forest", "sleeps through the winter"),
    "elephant": (
        "trumpets",
        "calf",
        4,
        "leaves and grass",
        "on the savanna",
        "is the largest animal on land",
    ),
    "bee": ("buzzes", "larva", 6, "nectar", "in a hive", "makes honey"),
    "snake": ("hisses", "hatchling", 0, "small animals", "in warm places", "has no legs"),
    "fox": ("barks", "cub", 4, "mice and berries", "in the forest", "is known for being clever"),
    "goat": ("bleats", "kid", 4, "grass and leaves", "on a farm", "climbs very well"),
    "spider": ("", "spiderling", 8, "insects", "in a web", "spins a web"),
    "ant": ("", "larva", 6, "seeds and sugar", "in a nest", "can carry many times its own weight"),
    "rabbit": ("", "kit", 4, "grass and carrots", "in a burrow", "has long ears"),
    "penguin": ("", "chick", 2, "fish", "on cold coasts", "is a bird that cannot fly"),
    "whale": ("", "calf", 0, "krill and fish", "in the ocean", "is a mammal, not a fish"),
    "giraffe": ("", "calf", 4, "leaves", "on the savanna", "is the tallest animal"),
}
PLANETS = ["Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune"]
PLANET_NOTES = {
    "Mercury": "It is the smallest planet and the closest to the Sun.",
    "Venus": "It is the hottest planet, because its thick air keeps the heat in.",
    "Earth": "It is our home, and the only planet that we know to have life.",
    "Mars": "It is called the red planet, because its soil is full of rust.",
    "Jupiter": "It is the largest planet, with a storm called the Great Red Spot.",
    "Saturn": "It is famous for its bright rings of ice and rock.",
    "Uranus": "It is very cold and lies on its side as it goes round the Sun.",
    "Neptune": "It is the farthest planet from the Sun, and very windy.",
}
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = [
    "January", "February", "March", "April", "May", "June", "July",
    "August", "September", "October", "November", "December",
]  # fmt: skip
MONTH_DAYS = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
SEASONS = {"spring": "March, April and May", "summer": "June, July and August",
           "autumn": "September, October and November", "winter": "December, January and February"}  # fmt: skip
ORDINALS = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth",
            "eleventh", "twelfth"]  # fmt: skip
OPPOSITES = {
    "hot": "cold", "big": "small", "fast": "slow", "up": "down", "day": "night", "happy": "sad", "light": "dark",
    "open": "closed", "old": "young", "wet": "dry", "full": "empty", "early": "late", "high": "low", "left": "right",
    "hard": "soft", "rich": "poor", "strong": "weak", "loud": "quiet", "near": "far", "black": "white",
    "good": "bad", "long": "short", "clean": "dirty", "cheap": "expensive", "easy": "difficult",
}  # fmt: skip
PLURALS = {
    "cat": "cats", "dog": "dogs", "mouse": "mice", "child": "children", "foot": "feet", "tooth": "teeth",
    "man": "men", "woman": "women", "box": "boxes", "city": "cities", "leaf": "leaves", "sheep": "sheep",
    "goose": "geese", "house": "houses", "node": "nodes", "story": "stories", "fish": "fish", "tree": "trees",
}  # fmt: skip
UNITS = {
    ("seconds", "a minute"): 60, ("minutes", "an hour"): 60, ("hours", "a day"): 24, ("days", "a week"): 7,
    ("months", "a year"): 12, ("days", "a year"): 365, ("weeks", "a year"): 52, ("years", "a century"): 100,
    ("metres", "a kilometre"): 1000, ("grams", "a kilogram"): 1000, ("centimetres", "a metre"): 100,
    ("letters", "the English alphabet"): 26, ("planets", "the Solar System"): 8, ("legs", "a spider's body"): 8,
    ("sides", "a triangle"): 3, ("sides", "a square"): 4, ("sides", "a hexagon"): 6, ("sides", "a pentagon"): 5,
    ("wheels", "a bicycle"): 2, ("eggs", "a dozen"): 12, ("colours", "a rainbow"): 7, ("bits", "a byte"): 8,
}  # fmt: skip
WHYS = {
    "Why is the sky blue": "Sunlight is a mix of all colours. The air scatters blue light more than red light, "
    "so blue reaches our eyes from every side.",
    "Why do leaves fall in autumn": "Days get short and cold, so trees save water and energy by letting their "
    "leaves go. New leaves grow in spring.",
    "Why does it rain": "The sun warms water and it rises as vapour. High up it cools, becomes clouds, and falls "
    "back as rain.",
    "Why is the sea salty": "Rain and rivers wash salts out of the rocks and carry them to the sea, where the "
    "water leaves again as vapour but the salt stays.",
    "Why do we sleep": "Sleep lets the body rest and repair itself, and it helps the brain to sort what it learned.",
    "How do birds fly": "Birds push air down with their wings, and the air pushes them up. Light bones and strong "
    "muscles help.",
    "How does a rainbow form": "Sunlight enters drops of rain, is bent and split into its colours, and comes back "
    "to our eyes as a bow.",
    "What is photosynthesis": "It is how plants make sugar from light, water and carbon dioxide. They give off "
    "oxygen as they do it.",
    "What is gravity": "Gravity is the force that pulls things towards each other. It keeps us on the ground and "
    "the planets near the Sun.",
    "Why do we have seasons": "The Earth's axis is tilted. For half of the year the north leans towards the Sun, "
    "and for the other half the south does.",
    "What is the Moon": "The Moon is a ball of rock that goes round the Earth about once a month. It shines by "
    "reflecting sunlight.",
    "What is the Sun": "The Sun is a star: a huge ball of hot gas that gives us light and warmth.",
    "What is water made of": "Water is made of hydrogen and oxygen. Its formula is H2O.",
    "At what temperature does water boil": "At sea level water boils at 100 degrees Celsius.",
    "At what temperature does water freeze": "Water freezes at 0 degrees Celsius.",
    "What is the largest ocean": "The Pacific Ocean is the largest ocean on Earth.",
    "What is the largest planet": "Jupiter is the largest planet in the Solar System.",
    "What is the smallest planet": "Mercury is the smallest planet in the Solar System.",
    "What is the largest animal": "The blue whale is the largest animal that has ever lived.",
    "What is the tallest animal": "The giraffe is the tallest animal.",
    "What is the highest mountain": "Mount Everest is the highest mountain on Earth above the sea.",
    "How many continents are there": "There are seven continents: Africa, Antarctica, Asia, Europe, North America, "
    "Oceania and South America.",
    "What are the primary colours": "In painting the primary colours are red, yellow and blue.",
    "What are the colours of the rainbow": "The colours of the rainbow are red, orange, yellow, green, blue, "
    "indigo and violet.",
    "What do plants need to grow": "Plants need light, water, air and minerals from the soil.",
    "How do you make tea": "Boil water, pour it over the tea leaves, wait three to five minutes, then take the "
    "leaves out. Add milk, lemon or sugar if you like.",
    "How do you make pancakes": "Mix flour, milk, eggs and a little salt to a smooth batter. Heat some butter in a "
    "pan, pour in a thin layer, and turn it when the edge is golden.",
    "How do I stay healthy": "Sleep enough, move every day, eat fruit and vegetables, drink water, and spend time "
    "with people you like.",
    "How can I learn faster": "Practise a little every day, explain things in your own words, and sleep well. "
    "Small steps add up.",
}


def capital(rng: Random) -> Turn:
    country, city = pick(rng, sorted(CAPITALS.items()))
    plain = country.removeprefix("the ")
    ask = pick(rng, [
        f"What is the capital of {country}?", f"What's the capital of {country}?", f"capital of {plain}",
        f"Which city is the capital of {country}?", f"Tell me the capital of {country}.",
        f"Do you know the capital of {country}?", f"Name the capital of {country}.", f"{plain} capital?",
        f"What is {plain}'s capital city?", f"Can you tell me what the capital of {country} is?",
    ])  # fmt: skip
    return Turn(ask, f"The capital of {country} is {city}.", city + ".")


def capital_of_what(rng: Random) -> Turn:
    country, city = pick(rng, sorted(CAPITALS.items()))
    ask = pick(rng, [
        f"Which country is {city} the capital of?", f"{city} is the capital of which country?",
        f"What country has {city} as its capital?",
    ])  # fmt: skip
    return Turn(ask, f"{city} is the capital of {country}.", country[0].upper() + country[1:] + ".")


def city_where(rng: Random) -> Turn:
    country, city = pick(rng, sorted(CAPITALS.items()))
    ask = pick(rng, [f"Where is {city}?", f"In which country is {city}?", f"Tell me about {city}."])
    return Turn(
        ask, f"{city} is a city in {country}. It is the capital.", country[0].upper() + country[1:] + "."
    )


def continent(rng: Random) -> Turn:
    name, countries = pick(rng, sorted(CONTINENTS.items()))
    country = pick(rng, countries.split())
    ask = pick(rng, [
        f"Which continent is {country} in?", f"What continent is {country} on?", f"Where is {country}?",
        f"On which continent does {country} lie?", f"Is {country} in {name}?",
    ])  # fmt: skip
    start = "Yes, " if ask.startswith("Is ") else ""
    return Turn(ask, f"{start}{country} is in {name}.", name + ".")


def colour(rng: Random) -> Turn:
    thing, hue = pick(rng, sorted(COLOURS.items()))
    ask = pick(rng, [
        f"What colour is {thing}?", f"What color is {thing}?", f"Which colour does {thing} have?",
        f"Tell me the colour of {thing}.", f"What is the color of {thing}?",
    ])  # fmt: skip
    if thing.startswith("the sky") and rng.random() < 0.5:
        ask = pick(rng, ["What colour is the sky?", "What color is the sky?"])
    name = thing[0].upper() + thing[1:]
    return Turn(ask, f"{name} is {hue}.", hue.capitalize() + ".")


def mix(rng: Random) -> Turn:
    (one, two), result = pick(rng, sorted(MIXES.items()))
    if rng.random() < 0.5:
        one, two = two, one
    ask = pick(rng, [
        f"What do you get when you mix {one} and {two}?", f"What colour do {one} and {two} make?",
        f"Mix {one} with {two}. What colour is it?", f"{one} plus {two} makes which color?",
    ])  # fmt: skip
    return Turn(ask, f"If you mix {one} and {two}, you get {result}.", result.capitalize() + ".")


def animal(rng: Random) -> Turn:
    name, (sound, young, legs, food, home, remark) = pick(rng, sorted(ANIMALS.items()))
    a = "an" if name[0] in "aeiou" else "a"
    A = a.capitalize()
    count = {0: "no"}.get(legs, str(legs))
    ways = [
        ([f"What is a baby {name} called?", f"What do you call a young {name}?", f"Name of a baby {name}?"],
         f"A baby {name} is called a {young}." if young[0] not in "aeiou" else f"A baby {name} is called an {young}.",
         young.capitalize() + "."),
        ([f"How many legs does {a} {name} have?", f"How many legs has {a} {name} got?", f"{name} how many legs"],
         f"{A} {name} has {count} legs.", f"{count.capitalize()}."),
        ([f"What does {a} {name} eat?", f"What do you feed {a} {name}?", f"What is the food of {a} {name}?"],
         f"{A} {name} eats {food}.", food.capitalize() + "."),
        ([f"Where does {a} {name} live?", f"Where can I find {a} {name}?"], f"{A} {name} lives {home}.",
         home.capitalize() + "."),
        ([f"Tell me something about the {name}.", f"What is {a} {name}?", f"Tell me about {name}s.",
          f"Do you know something about {a} {name}?", f"Describe {a} {name}."],
         f"{A} {name} is an animal with {count} legs. It lives {home} and eats {food}. A young one is called "
         f"{'an' if young[0] in 'aeiou' else 'a'} {young}. {A} {name} {remark}.", None),
    ]  # fmt: skip
    if sound:
        ways.append(([f"What sound does {a} {name} make?", f"What noise does the {name} make?",
                      f"Which sound does {a} {name} make?", f"How does {a} {name} sound?"],
                     f"{A} {name} {sound}.", f"It {sound}."))  # fmt: skip
    asks, answer, short = pick(rng, ways)
    return Turn(pick(rng, asks), answer, short)


def planet(rng: Random) -> Turn:
    at = rng.randrange(8)
    name, order = PLANETS[at], ORDINALS[at]
    ways = [
        ([f"Which planet is the {order} from the Sun?", f"What is the {order} planet from the Sun?",
          f"Name the {order} planet."], f"{name} is the {order} planet from the Sun.", name + "."),
        ([f"Tell me about {name}.", f"What is {name}?", f"What do you know about the planet {name}?",
          f"Describe {name}."], f"{name} is the {order} planet from the Sun. {PLANET_NOTES[name]}", None),
        (["List the planets.", "Name all the planets.", "What are the planets of the Solar System?",
          "Which planets are there?", "Tell me the planets in order."],
         f"The planets, from the Sun outwards, are {listed(PLANETS)}.", listed(PLANETS) + "."),
        (["Which planet is red?", "Which planet is called the red planet?"], "Mars is called the red planet.", "Mars."),
        (["Which planet has rings?", "What planet is famous for its rings?"],
         "Saturn is famous for its bright rings.", "Saturn."),
        (["Which planet do we live on?", "What planet do we live on?"], "We live on the planet Earth.", "Earth."),
        (["Which planet is closest to the Sun?", "What is the closest planet to the Sun?"],
         "Mercury is the planet closest to the Sun.", "Mercury."),
    ]  # fmt: skip
    asks, answer, short = pick(rng, ways)
    return Turn(pick(rng, asks), answer, short)


def calendar(rng: Random) -> Turn:
    d, m = rng.randrange(7), rng.randrange(12)
    day, month = DAYS[d], MONTHS[m]
    after, before = DAYS[(d + 1) % 7], DAYS[(d - 1) % 7]
    season, when = pick(rng, sorted(SEASONS.items()))
    ways = [
        ([f"What day comes after {day}?", f"Which day follows {day}?", f"Today is {day}. What day is tomorrow?",
          f"If today is {day}, what is tomorrow?"], f"The day after {day} is {after}.", after + "."),
        ([f"What day comes before {day}?", f"Which day is before {day}?",
          f"Today is {day}. What day was yesterday?"], f"The day before {day} is {before}.", before + "."),
        ([f"What month comes after {month}?", f"Which month follows {month}?"],
         f"The month after {month} is {MONTHS[(m + 1) % 12]}.", MONTHS[(m + 1) % 12] + "."),
        ([f"What month comes before {month}?", f"Which month is before {month}?"],
         f"The month before {month} is {MONTHS[(m - 1) % 12]}.", MONTHS[(m - 1) % 12] + "."),
        ([f"What is the {ORDINALS[m]} month?", f"Which month is the {ORDINALS[m]} of the year?"],
         f"{month} is the {ORDINALS[m]} month of the year.", month + "."),
        ([f"How many days does {month} have?", f"How many days are in {month}?", f"Days in {month}?"],
         f"{month} has {MONTH_DAYS[m]} days." + (" In a leap year it has 29." if m == 1 else ""), f"{MONTH_DAYS[m]}."),
        (["List the days of the week.", "What are the days of the week?", "Name the days of the week.",
          "Which days does a week have?", "Tell me the seven days of the week."],
         f"The days of the week are {listed(DAYS)}.", listed(DAYS) + "."),
        (["List the months.", "What are the months of the year?", "Name the twelve months.",
          "Tell me all months of the year."], f"The months of the year are {listed(MONTHS)}.", listed(MONTHS) + "."),
        ([f"Which months are in {season}?", f"When is {season}?", f"What are the {season} months?"],
         f"In the north, {season} is in {when}.", when + "."),
        (["What are the four seasons?", "Name the seasons.", "List the seasons."],
         "The four seasons are spring, summer, autumn and winter.", "Spring, summer, autumn and winter."),
        (["Which days are the weekend?", "What days are on the weekend?"],
         "The weekend is Saturday and Sunday.", "Saturday and Sunday."),
    ]  # fmt: skip
    asks, answer, short = pick(rng, ways)
    return Turn(pick(rng, asks), answer, short)


def word(rng: Random) -> Turn:
    if rng.random() < 0.6:
        one, two = pick(rng, sorted(OPPOSITES.items()))
        if rng.random() < 0.5 and one not in ("up", "good"):
            one, two = two, one
        ask = pick(rng, [f"What is the opposite of {one}?", f"opposite of {one}", f"Give me the opposite of {one}.",
                         f"What's the opposite of \"{one}\"?", f"Which word means the opposite of {one}?"])  # fmt: skip
        return Turn(ask, f"The opposite of {one} is {two}.", two.capitalize() + ".")
    one, two = pick(rng, sorted(PLURALS.items()))
    ask = pick(rng, [f"What is the plural of {one}?", f"plural of {one}", f"Give me the plural of {one}."])
    return Turn(ask, f"The plural of {one} is {two}.", two.capitalize() + ".")


def unit(rng: Random) -> Turn:
    (things, whole), count = pick(rng, sorted(UNITS.items()))
    ask = pick(rng, [
        f"How many {things} are in {whole}?", f"How many {things} are there in {whole}?",
        f"How many {things} does {whole} have?", f"Number of {things} in {whole}?",
    ])  # fmt: skip
    return Turn(ask, f"There are {count} {things} in {whole}.", f"{count}.")


def why(rng: Random) -> Turn:
    ask, answer = pick(rng, sorted(WHYS.items()))
    low = ask[0].lower() + ask[1:]
    form = pick(
        rng, [f"{ask}?", f"{ask}?", f"{ask}?", f"Please explain: {low}?", f"I wonder, {low}?", f"{low}"]
    )
    return Turn(form, answer, None)


FACTS = [
    (7, capital), (2, capital_of_what), (1, city_where), (2, continent), (4, colour), (2, mix), (8, animal),
    (5, planet), (8, calendar), (4, word), (4, unit), (6, why),
]  # fmt: skip
