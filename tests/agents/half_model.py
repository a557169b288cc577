"""Leaves a model without weights, and a note."""

from pathlib import Path

Path("final_model").mkdir()
Path("final_model/config.json").write_text("{}")
Path("notes.md").write_text("I could not finish.")
print("half a model is better than none")
