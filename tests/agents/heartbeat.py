"""Works for two seconds, with a beating heart, then leaves half of a model."""

import time
from pathlib import Path

print("started", flush=True)
for _ in range(20):
    Path("heartbeat").write_text(str(time.time()))
    time.sleep(0.1)
Path("final_model").mkdir()
Path("final_model/config.json").write_text("{}")
print("finished", flush=True)
