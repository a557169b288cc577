"""PostTrainBench: can an AI agent post-train a language model on its own?"""

__version__ = "0.1.0"
