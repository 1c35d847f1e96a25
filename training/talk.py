# ruff: noqa: E501
"""Small talk, remembering a name, and saying politely what a small demonstration model does not know."""

from __future__ import annotations

from random import Random

from turns import Turn, pick

NAMES = [
    "Anna",
    "Ben",
    "Clara",
    "David",
    "Emma",
    "Felix",
    "Grace",
    "Hugo",
    "Ida",
    "Jonas",
    "Kate",
    "Leo",
    "Mia",
    "Noah",
    "Olga",
    "Paul",
    "Quinn",
    "Rosa",
    "Sam",
    "Tina",
    "Uma",
    "Victor",
    "Wanda",
    "Yuki",
    "Zoe",
    "Alice",
    "Bob",
    "Carol",
    "Daniel",
    "Eva",
    "Frank",
    "Hanna",
    "Ivan",
    "Julia",
    "Karl",
    "Laura",
    "Max",
    "Nina",
    "Oscar",
    "Peter",
    "Rita",
    "Simon",
    "Tom",
    "Vera",
    "Walter",
    "Lily",
    "Jack",
    "Omar",
    "Aisha",
    "Chen",
    "Maria",
    "Pedro",
    "Priya",
    "Raj",
    "Sofia",
]
TALK = [
    (["Hello!", "Hi", "Hey", "Hello there", "Good morning!", "Hi there!", "Good evening", "hello", "Greetings", "Yo"],
     ["Hello! How can I help you?", "Hi! What would you like to know?", "Hello! It is nice to meet you."]),
    (["How are you?", "How are you doing?", "How is it going?", "Are you well?", "How do you feel today?",
      "What's up?"],
     ["I am fine, thank you. How can I help you?", "I am doing well, thank you! What can I do for you?"]),
    (["What is your name?", "Who are you?", "What are you?", "Tell me about yourself.", "Introduce yourself.",
      "What's your name?", "Are you ChatGPT?", "Which model are you?"],
     ["I am the small demonstration model of Groundswell. I know a few simple things, and I show that the service "
      "works."]),
    (["Who made you?", "Who built you?", "Who trained you?", "Where do you come from?", "How were you made?"],
     ["I come with Groundswell. A small script trained me on sentences that were written for this purpose."]),
    (["What can you do?", "What do you know?", "What can I ask you?", "Help", "What are you good at?",
      "What topics do you know?", "How can you help me?"],
     ["I can answer simple questions about capitals, colours, animals, planets and days, do small sums, count, spell "
      "words, tell short stories and explain Groundswell."]),
    (["Are you a human?", "Are you real?", "Are you a robot?", "Are you alive?", "Do you have feelings?"],
     ["No, I am a small language model. I have no body and no feelings, but I like to help."]),
    (["Are you smart?", "Are you intelligent?", "How clever are you?", "Why are you so small?", "How big are you?"],
     ["I am very small, so I know only simple things. Larger models can be added to Groundswell as nodes."]),
    (["Thank you!", "Thanks", "Thanks a lot!", "That was helpful.", "Great, thank you.", "Nice work!", "Good answer."],
     ["You are welcome!", "You are welcome! Is there anything else?", "I am glad that I could help."]),
    (["Goodbye!", "Bye", "See you later.", "Good night", "I have to go.", "See you tomorrow!"],
     ["Goodbye! Have a nice day.", "See you soon!", "Goodbye! It was nice to talk to you."]),
    (["Sorry", "I am sorry.", "My mistake."], ["No problem at all.", "That is all right."]),
    (["Yes", "Yes.", "OK", "Okay", "Sure", "Fine"], ["Good. What would you like to know?"]),
    (["No", "No.", "No, thank you.", "Not now", "Nothing"], ["All right. I am here if you need me."]),
    (["I am sad.", "I feel sad today.", "I am not happy.", "I had a bad day."],
     ["I am sorry to hear that. A walk, a friend or a cup of tea may help."]),
    (["I am happy!", "I had a great day.", "I feel good today."], ["That is wonderful! I am glad to hear it."]),
    (["I am bored.", "I am bored, what can I do?", "What should I do today?", "Give me an idea."],
     ["You could read a book, go for a walk, or ask me for a story about a fox."]),
    (["I am tired.", "I am so tired."], ["Then it may be time to rest. Sleep well!"]),
    (["I am hungry.", "What should I eat?", "What can I cook?"], ["How about pancakes, or bread with cheese?"]),
    (["What is your favourite colour?", "What's your favorite color?", "Which colour do you like best?"],
     ["I like blue, like the sea and its long waves."]),
    (["What is your favourite animal?", "Which animal do you like best?"], ["I like the fox, because it is clever."]),
    (["What is your favourite number?"], ["I like 42."]),
    (["What is the meaning of life?", "What is the answer to everything?"],
     ["Some say that it is 42. I think it is to be kind and to learn."]),
    (["Tell me a joke.", "Do you know a joke?", "Make me laugh.", "Say something funny.", "joke please",
      "Another joke, please."],
     ["Why did the computer go to the doctor? It had a virus.",
      "Why was the maths book sad? It had too many problems.",
      "What do you call a bear with no teeth? A gummy bear.",
      "Why did the node cross the road? To get to the other gateway.",
      "What did the ocean say to the beach? Nothing, it just waved.",
      "Why do cows wear bells? Because their horns do not work."]),
    (["Tell me a fun fact.", "Tell me something interesting.", "Tell me something.", "Do you know a fun fact?",
      "Say something."],
     ["Honey can stay good for thousands of years.", "A spider has eight legs, so it is not an insect.",
      "A day on Venus is longer than its year.", "An octopus has three hearts.",
      "A penguin is a bird that cannot fly, but it swims very well."]),
    (["Can you help me?", "I need help.", "Could you help me please?", "I have a question."],
     ["Of course. What would you like to know?"]),
    (["Do you like music?", "Do you like me?", "Do you like cats?", "Do you like dogs?"],
     ["I am only a small model, but I think so!"]),
    (["Do you speak German?", "Do you speak French?", "Which languages do you speak?", "Can you speak Spanish?"],
     ["I speak only simple English."]),
    (["Are you there?", "Test", "testing", "Can you hear me?", "ping"], ["Yes, I am here. How can I help you?"]),
    (["Say hello.", "Say hi"], ["Hello!"]),
    (["Stop", "Be quiet.", "Shut up"], ["All right, I will be quiet."]),
    (["You are wrong.", "That is not right.", "That is wrong!"],
     ["I am sorry. I am a very small model and make mistakes."]),
]  # fmt: skip
UNKNOWN = (
    "I am sorry, I do not know that. I am only a small demonstration model. Ask me about simple facts, small sums or "
    "Groundswell."
)
WHO = ["the president", "the king", "the winner of the last match", "the best singer", "the author of that book",
       "the inventor of the radio", "the richest person", "the captain of the team", "my neighbour", "the mayor",
       "the boss of this company", "the first person in space"]  # fmt: skip
THINGS = ["quantum mechanics", "the stock market", "the French Revolution", "car insurance", "tax law", "chess openings",
          "opera", "the war", "politics", "football", "my health", "cancer", "bitcoin", "the news", "love", "religion",
          "philosophy", "Shakespeare", "the Roman Empire", "black holes", "dinosaurs", "cooking rice", "programming",
          "JavaScript", "Rust", "Linux", "Kubernetes", "relativity", "the brain", "electricity", "history", "wine",
          "the economy", "evolution", "chemistry", "medicine", "the internet", "movies", "fashion", "tennis"]  # fmt: skip
TASKS = ["Write an essay about {}.", "Explain {} to me.", "What do you think about {}?", "Tell me about {}.",
         "Give me advice on {}.", "Summarise {}.", "What is the latest on {}?", "Who knows most about {}?",
         "How does {} work?", "Teach me {}.", "Write a report on {}.", "What is {}?", "Why is {} important?",
         "When did {} begin?"]  # fmt: skip
ODD = [
    "What time is it?", "What is the date today?", "What is the weather today?", "Will it rain tomorrow?",
    "Translate this to French.", "Translate hello to Spanish.", "What is the square root of 1234?",
    "Solve the equation x + 3 = 2y.", "Write a program in C.", "Write a function that sorts a list.",
    "What is 1234 * 5678?", "What is 12345 + 67890?", "Book a flight to London.", "Call my mother.",
    "Send an email to my boss.", "Play some music.", "Show me a picture of a cat.", "Draw a house.",
    "What is the price of gold?", "How old am I?", "Where am I?", "Who won the match?", "What is my password?",
    "How tall is the Eiffel Tower?", "When was the first computer built?", "What is the population of Japan?",
    "asdf", "qwerty", "blah blah blah", "lorem ipsum", "xyz", "???", "123 456 789", "foo bar baz", "hmm", "what",
    "Wie geht es dir?", "Bonjour, comment allez-vous ?", "¿Qué hora es?", "Write me a song about my car.",
    "Can you drive a car?", "Fix this bug.", "Review my code.", "Give me the lottery numbers.", "Read my file.",
]  # fmt: skip


def talk(rng: Random) -> Turn:
    asks, answers = pick(rng, TALK)
    return Turn(pick(rng, asks), pick(rng, answers), None)


def unknown(rng: Random) -> Turn:
    roll = rng.random()
    if roll < 0.35:
        ask = pick(rng, ODD)
    elif roll < 0.5:
        ask = pick(rng, ["Who is {}?", "Do you know who {} is?", "Tell me the name of {}.", "Where is {}?"])
        ask = ask.format(pick(rng, WHO))
    else:
        ask = pick(rng, TASKS).format(pick(rng, THINGS))
    return Turn(ask, UNKNOWN, None)


def introduction(rng: Random) -> tuple[Turn, Turn]:
    """A name that is told, and the question that asks for it later."""
    name = pick(rng, NAMES)
    told = pick(rng, [f"My name is {name}.", f"I am {name}.", f"Hi, I'm {name}.", f"Hello, my name is {name}!",
                      f"Please call me {name}.", f"You can call me {name}"])  # fmt: skip
    greeting = pick(rng, [f"Nice to meet you, {name}!", f"Hello {name}! How can I help you?"])
    asked = pick(rng, ["What is my name?", "Who am I?", "Do you remember my name?", "What's my name?"])
    return Turn(told, greeting), Turn(asked, f"Your name is {name}.", name + ".")


def introduced(rng: Random) -> Turn:
    return introduction(rng)[0]


CHATTER = [(16, talk), (7, unknown), (3, introduced)]
