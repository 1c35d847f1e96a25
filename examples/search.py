"""Finds the sentence that is closest in meaning. Set GROUNDSWELL_URL and GROUNDSWELL_API_KEY first."""

import os

from openai import OpenAI

SENTENCES = ["The cat sleeps on the sofa.", "Stock prices fell today.", "A recipe for tomato soup."]
QUESTION = "What can I cook?"

client = OpenAI(base_url=os.environ["GROUNDSWELL_URL"] + "/v1", api_key=os.environ["GROUNDSWELL_API_KEY"])
answer = client.embeddings.create(model="all-minilm-l6-v2", input=[QUESTION, *SENTENCES])
question, *sentences = [entry.embedding for entry in answer.data]
# The vectors have length one, so that their product is how alike they are.
alike = [sum(a * b for a, b in zip(question, sentence, strict=True)) for sentence in sentences]
print(SENTENCES[alike.index(max(alike))])
