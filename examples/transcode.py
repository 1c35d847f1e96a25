"""Transcodes a video and prints where it plays: python transcode.py FILE.

Set GROUNDSWELL_URL and GROUNDSWELL_API_KEY first.
"""

import os
import sys
import time
from pathlib import Path

import httpx

client = httpx.Client(
    base_url=os.environ["GROUNDSWELL_URL"],
    headers={"authorization": f"Bearer {os.environ['GROUNDSWELL_API_KEY']}"},
    timeout=600,
)
source = Path(sys.argv[1])
with source.open("rb") as file:
    response = client.post("/v1/transcodes", files={"file": file}, data={"ladder": '["360p"]'})
response.raise_for_status()
job = response.json()
while job["status"] in ("queued", "running"):
    time.sleep(0.5)
    job = client.get(f"/v1/transcodes/{job['id']}").raise_for_status().json()
if job["status"] != "done":
    sys.exit(f"The transcode {job['status']}: {job['error']}")
print(f"{len(job['segments'])} segments, {job['cost']}: {job['playback_url']}")
