"""Supervised fine-tuning of language models, from raw examples to a tuned assistant with a report."""

__version__ = "0.1.0"
