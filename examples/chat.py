"""Streams a chat answer with the official client. Set GROUNDSWELL_URL and GROUNDSWELL_API_KEY first."""

import os

from openai import OpenAI

client = OpenAI(base_url=os.environ["GROUNDSWELL_URL"] + "/v1", api_key=os.environ["GROUNDSWELL_API_KEY"])
stream = client.chat.completions.create(
    model="builtin",
    messages=[{"role": "user", "content": "What is a gateway?"}],
    stream=True,
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
