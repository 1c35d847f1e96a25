# ruff: noqa: E501
"""What Groundswell is and how to use it, as questions and answers, from one line to a long explanation."""

from __future__ import annotations

from random import Random

from turns import Turn, pick

# name: (one sentence, more)
TERMS = {
    "Groundswell": (
        "Groundswell turns any set of computers into one elastic service for generative AI and video.",
        "Clients talk to one URL, and independent nodes behind it do the work.",
    ),
    "a gateway": (
        "A gateway is the front door of Groundswell: it takes requests over HTTP and gives them to nodes.",
        "It checks API keys, queues work, chooses a node, and keeps what it has sent so that a stream can go on "
        "elsewhere.",
    ),
    "a node": (
        "A node is a computer, or a part of one, that does work for a gateway.",
        "It runs one or more engines, says how much it can take, and refuses when it is full.",
    ),
    "an engine": (
        "An engine is the program that does the work itself, such as a language model server or ffmpeg.",
        "Each engine runs as its own process, so a crash of an engine does not take the node with it.",
    ),
    "a segment": (
        "A segment is a short piece of a video that is transcoded on its own.",
        "A video is cut at key frames into segments, and different nodes work on them at the same time.",
    ),
    "a rendition": (
        "A rendition is one version of a video, with its own size and bit rate.",
        "A player switches between renditions as the network gets faster or slower.",
    ),
    "a ladder": (
        "A ladder is the set of renditions that are made of one video, for example 720p, 480p and 360p.",
        "A player climbs it when the network is fast and goes down when it is slow.",
    ),
    "a token": (
        "A token is a small piece of text, often a word or a part of a word.",
        "Language models read and write tokens, and usage is counted in them.",
    ),
    "an API key": (
        "An API key is a secret that tells the gateway who you are.",
        "You send it with each request, and you can revoke it at any time with groundswell keys.",
    ),
    "streaming": (
        "Streaming means that you get the answer token by token while it is being written.",
        "Set stream to true in your request to use it.",
    ),
    "failover": (
        "Failover means that another node takes over when a node dies.",
        "Groundswell continues a stream on another node, so that you see a pause and then the rest.",
    ),
    "a heartbeat": (
        "A heartbeat is a short message by which a node says that it is alive.",
        "When heartbeats stop, the gateway gives the work to other nodes.",
    ),
    "transcoding": (
        "Transcoding is changing a video into other sizes, bit rates or codecs.",
        "Groundswell spreads the segments of a video over many nodes and puts the results together.",
    ),
    "HLS": (
        "HLS is a way to deliver video over HTTP as a playlist of short segments.",
        "Groundswell makes an HLS ladder from the video that you upload.",
    ),
    "an API": (
        "An API is a way for one program to talk to another.",
        "Groundswell speaks the OpenAI API, so many tools work with it.",
    ),
    "a GPU": (
        "A GPU is a processor that does many small calculations at once.",
        "It is good at running language models and at encoding video.",
    ),
    "an embedding": (
        "An embedding is a list of numbers that stands for the meaning of a text.",
        "Texts with a similar meaning have similar embeddings, which helps in search.",
    ),
    "latency": (
        "Latency is the time from a request to its answer.",
        "Groundswell keeps it low by sending work to nodes that have room.",
    ),
    "load balancing": (
        "Load balancing means spreading work so that no computer has too much of it.",
        "Groundswell looks at the work in flight and sends a request where it will be done soonest.",
    ),
    "a language model": (
        "A language model is a program that has learned from text which words come next.",
        "I am a very small one, made to show Groundswell at work.",
    ),
    "a server": (
        "A server is a program or a computer that answers requests from others.",
        "A Groundswell gateway is a server.",
    ),
    "a queue": (
        "A queue is a line in which work waits for its turn.",
        "In Groundswell the queue has a limit, and when it is full you get an honest answer to try again later.",
    ),
    "continuation": (
        "Continuation means that a broken stream goes on where it stopped, with nothing lost or repeated.",
        "The gateway gives what was already sent to another node, and that node writes the rest.",
    ),
}

HOWTOS = [
    (["How do I start Groundswell?", "How do I run Groundswell?", "How do I get started?", "Start Groundswell how?",
      "What is the first command?", "How can I try Groundswell?"],
     "Run groundswell up. It starts a gateway, local nodes and their engines, and prints the URL and an API key."),
    (["How do I use Groundswell with the OpenAI client?", "How do I use the OpenAI SDK with Groundswell?",
      "How do I connect my Python program?", "Does my OpenAI code work with Groundswell?", "How do I call the API?"],
     "Set base_url to the URL of the gateway and api_key to your key. Nothing else in your code has to change."),
    (["What is base_url?", "What do I set base_url to?", "Which base_url do I need?", "Where do I find the base URL?"],
     "The base_url is the address of the gateway with /v1 at the end. groundswell up prints it."),
    (["What is api_key?", "Where do I get an API key?", "How do I get an API key?", "How do I make a new key?"],
     "groundswell up prints your first API key, and groundswell keys makes more. Pass it as api_key in your client."),
    (["How do I add a node?", "How do I add my own server?", "How do I add another engine?", "How can I add Ollama?",
      "How do I add a machine that runs vLLM?", "What does nodes add do?", "How do I connect llama.cpp?"],
     "Run groundswell nodes add with the URL of any OpenAI-compatible server, for example groundswell nodes add "
     "http://box:11434. It is probed, and the next request can land there."),
    (["How do I join another machine?", "How do I add my computer to the network?", "How do machines join?",
      "Can I join more computers?", "How do I share my computer?"],
     "Each machine runs a node that connects to the gateway. You can start small with one machine and join more "
     "machines when you need them."),
    (["How do I transcode a video?", "Can you transcode video?", "How do I convert a video?",
      "How do I make an HLS ladder?", "What does groundswell transcode do?"],
     "Run groundswell transcode FILE. The video is cut into segments, the nodes transcode them, and you get an HLS "
     "ladder that plays in a browser."),
    (["How do I list my nodes?", "How do I see my nodes?", "Which nodes do I have?"],
     "Run groundswell nodes list. It shows each node with its engines and their state."),
    (["How do I see what is going on?", "How do I check the status?", "Is there a live view?",
      "How do I monitor Groundswell?"],
     "Run groundswell status for a live view of nodes, queues and streams. There are also metrics at /metrics."),
    (["How do I remove a node?", "How do I take a node out?"],
     "Run groundswell nodes rm with its name. Work that is running there is moved to other nodes."),
    (["How do I stop Groundswell?", "How do I shut it down?", "How do I end it?"],
     "Press Ctrl-C. Groundswell lets running work finish, and then it ends cleanly."),
    (["Something is wrong. What can I do?", "How do I find a problem?", "It does not work. Help!",
      "What does groundswell doctor do?"],
     "Run groundswell doctor. It looks at your machine, says what is wrong, and tells you how to mend it."),
    (["How do I chat from the terminal?", "Is there a chat command?", "What does groundswell chat do?"],
     "Run groundswell chat. It opens a chat with a model in your terminal."),
    (["How do I stream an answer?", "How do I turn on streaming?", "Can I stream tokens?"],
     "Set stream to true in your request. The tokens then arrive one after another as server-sent events."),
    (["What happens when a node dies?", "What if a node crashes?", "What happens if a machine is killed?",
      "What happens when an engine is killed in the middle of a stream?", "Is a stream lost when a node fails?"],
     "Nothing is lost. The gateway notices it, gives the stream to another node, and that node goes on where the "
     "first one stopped. You see a short pause and then the rest."),
    (["What happens when too many requests come?", "What if all nodes are busy?", "What happens under high load?",
      "What is a surge?"],
     "Requests wait in a queue with a limit. When the wait would be too long, the gateway says so at once and tells "
     "you when to try again."),
    (["Which endpoints are there?", "What endpoints does the gateway have?", "Which APIs does Groundswell offer?"],
     "There are /v1/chat/completions, /v1/completions, /v1/embeddings and /v1/models, and /v1/transcodes for video."),
    (["Which models can I use?", "How do I list the models?", "What models are there?"],
     "Ask /v1/models. It lists all models that your nodes offer, and I am the built-in one."),
    (["How do I get embeddings?", "Can I make embeddings?", "Is there an embeddings endpoint?"],
     "Send your texts to /v1/embeddings. You get a vector for each of them."),
    (["Is Groundswell free?", "What is the license of Groundswell?", "Is Groundswell open source?"],
     "Yes. Groundswell is open source under the Apache License 2.0."),
    (["Do I need a GPU?", "Does it run without a GPU?", "Can I use it on a laptop?"],
     "No, you can start without a GPU. I run on a normal processor, and you can add machines with GPUs later."),
    (["Who is Groundswell for?", "Who should use Groundswell?", "Who needs Groundswell?"],
     "It is for people who have several computers and want one address for AI and video that does not break when "
     "one of them does."),
    (["What can Groundswell do?", "What is Groundswell good for?", "Why should I use Groundswell?",
      "What are the benefits of Groundswell?"],
     "It streams chat answers, makes embeddings and transcodes video on many computers at once. It spreads the load, "
     "and when a computer dies the others carry on."),
    (["Where is my data stored?", "Where does Groundswell keep its state?", "What database does it use?"],
     "What must last is kept in an SQL database. By default it is SQLite, in one file on your disk."),
    (["Can a node read my prompts?", "Is my data private?", "Is Groundswell safe?"],
     "A node sees the prompts that it serves. So use nodes that you trust for private data."),
    (["Is Groundswell fast?", "How fast is Groundswell?"],
     "Groundswell adds very little time to a request. Most of the time is spent in the engine that writes the answer."),
    (["How does Groundswell choose a node?", "How does routing work?", "Where does my request go?"],
     "The gateway estimates for some good candidates how long each would take, and sends the request to the one that "
     "will be done first."),
    (["How much does it cost?", "How is usage counted?", "What does a request cost?"],
     "Each node has a price, and usage is counted in tokens and pixels. On your own machines the price can be zero."),
    (["What is the difference between a gateway and a node?", "Gateway or node, what is the difference?"],
     "The gateway takes requests and decides who does them. The nodes do the work with their engines."),
    (["What is the difference between a node and an engine?", "Node or engine, what is the difference?"],
     "An engine is the program that does the work. A node looks after one or more engines and talks to the gateway."),
    (["What is the difference between a segment and a rendition?", "Segment or rendition, what is the difference?"],
     "A segment is a piece of a video in time. A rendition is the whole video in one size and bit rate."),
    (["Show me a Python example.", "How do I use it from Python?", "Give me an example in Python.",
      "Write Python code that calls Groundswell."],
     "Here is an example:\n\nfrom openai import OpenAI\n\nclient = OpenAI(base_url=\"http://127.0.0.1:8787/v1\", "
     "api_key=\"YOUR_KEY\")\nanswer = client.chat.completions.create(\n    model=\"builtin\",\n    messages=[{\"role\": "
     "\"user\", \"content\": \"Hello!\"}],\n)\nprint(answer.choices[0].message.content)\n\nUse the URL and the key "
     "that groundswell up prints."),
    (["Show me a curl example.", "How do I use curl?", "Give me a curl command."],
     "Here is an example:\n\ncurl http://127.0.0.1:8787/v1/chat/completions -H \"Authorization: Bearer YOUR_KEY\" "
     "-H \"Content-Type: application/json\" -d '{\"model\": \"builtin\", \"messages\": [{\"role\": \"user\", \"content\": \"Hello!\"}]}'\n\nUse the URL and "
     "the key that groundswell up prints."),
]  # fmt: skip

LONG = [
    (["Explain how Groundswell works in detail.", "Explain how Groundswell works.", "How does Groundswell work?",
      "Tell me everything about Groundswell.", "Give me a long explanation of Groundswell.",
      "Describe the architecture of Groundswell."],
     ["Groundswell turns any set of computers into one elastic service for generative AI and video.",
      "It has three parts: the gateway, the nodes and the engines.",
      "First, a client sends a request to the gateway. The gateway is the front door. It checks the API key, looks at "
      "the size of the request, and estimates how much work it will be.",
      "Second, the gateway chooses a node. It compares some good candidates, counts the work that each has in flight, "
      "and takes the one that will be done soonest. If all nodes are busy, the request waits in a queue with a limit.",
      "Third, the node gives the request to one of its engines. An engine is a program that does the work itself, for "
      "example a language model server or ffmpeg. Every engine runs as its own process.",
      "Then the tokens flow back through the gateway to the client. The gateway remembers what it has sent.",
      "If the node dies in the middle, another node goes on where the first one stopped. Nothing is lost and nothing "
      "is sent twice. The client sees a short pause and then the rest.",
      "Video works in the same way. A video is cut into segments at its key frames, many nodes transcode them at the "
      "same time, and the gateway puts the renditions together into a ladder.",
      "So you have one address, and behind it as many computers as you like."]),
    (["What happens to a request?", "Tell me about the life of a request.", "What happens when I send a request?",
      "Explain step by step what happens to my request."],
     ["This is the life of a request, step by step.",
      "1. Your client sends it to the gateway over HTTP.",
      "2. The gateway checks your API key and reads the request.",
      "3. It estimates the work and chooses a node that has room.",
      "4. The node accepts it and starts an engine on it.",
      "5. The engine writes tokens, and they stream back to you as they come.",
      "6. If the node dies, another node continues the stream.",
      "7. At the end the usage is counted once, and the work is done."]),
    (["How does video transcoding work in Groundswell?", "Explain how a video is transcoded.",
      "How does Groundswell transcode a video in detail?", "Tell me how transcoding works, step by step."],
     ["A video is transcoded in a few steps.",
      "First, you upload the video, and the gateway looks at it: its size, its frames and its sound.",
      "Then it is cut at key frames into segments of some seconds. Each segment is one piece of work.",
      "The segments go to many nodes. Each node decodes its segment once and makes all renditions of the ladder from "
      "it.",
      "When a node dies, only its segments are done again by other nodes.",
      "At the end the gateway puts all segments in order and writes the playlists.",
      "The result is an HLS ladder that plays in a browser, with as many frames as the source had."]),
    (["How does Groundswell survive a crash?", "How does failover work?", "Explain failover in detail.",
      "How does Groundswell keep streams from breaking?"],
     ["Groundswell expects machines to fail, and it is built for that.",
      "Every node sends heartbeats. When they stop, or when a stream stands still for too long, the gateway acts.",
      "It knows what it has already sent to you. So it gives the request, together with that text, to another node.",
      "The new node reads the text and goes on after the last word. Late frames of the old node are thrown away.",
      "Durable work such as a video is written to disk before it is accepted, so it survives even when the gateway "
      "itself is killed.",
      "You see a short pause and then the rest."]),
]  # fmt: skip


def term(rng: Random) -> Turn:
    name, (first, more) = pick(rng, sorted(TERMS.items()))
    if rng.random() < 0.15:
        name, (first, more) = "Groundswell", TERMS["Groundswell"]
    bare = name.removeprefix("a ").removeprefix("an ")
    ask = pick(rng, [
        f"What is {name}?", f"What is {name}?", f"Explain {name}.", f"What does {bare} mean?", f"Define {bare}.",
        f"Can you explain what {name} is?", f"What's {name}?", f"Tell me what {name} is.",
        *([] if name == "Groundswell" else [f"What is {name} in Groundswell?"]),
    ])  # fmt: skip
    return Turn(ask, first if rng.random() < 0.25 else f"{first} {more}", first)


def howto(rng: Random) -> Turn:
    asks, answer = pick(rng, HOWTOS)
    return Turn(pick(rng, asks), answer, None)


def long(rng: Random) -> Turn:
    asks, parts = LONG[0] if rng.random() < 0.4 else pick(rng, LONG)
    joint = "\n" if parts[1].startswith("1.") else " " if len(parts) < 8 else "\n\n"
    return Turn(pick(rng, asks), joint.join(parts), None)


PRODUCT = [(12, term), (14, howto), (6, long)]
