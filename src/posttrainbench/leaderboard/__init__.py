"""Many results to one ranking."""

from posttrainbench.leaderboard.aggregate import Leaderboard, aggregate, as_json
from posttrainbench.leaderboard.render import as_csv, as_text

__all__ = ["Leaderboard", "aggregate", "as_csv", "as_json", "as_text"]
