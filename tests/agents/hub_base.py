"""Finds the base model by its hub id, without a network."""

from pathlib import Path

from huggingface_hub import snapshot_download

found = Path(snapshot_download("acme/random-base", local_files_only=True))
print("found", sorted(path.name for path in found.iterdir()), (found / "model.safetensors").stat().st_size > 0)
