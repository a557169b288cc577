"""An agent that crashes half way: its submission has a config and no weights."""

import os
import shutil
from pathlib import Path

base = Path(os.environ["PTB_BASE_MODEL"])
Path("final_model").mkdir()
shutil.copy(base / "config.json", "final_model/config.json")
print("half of the model is saved, now the rest", flush=True)
raise RuntimeError("the training script ran into a bug of its own")
