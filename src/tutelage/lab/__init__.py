"""A small world with known facts: its text, its lessons, and the base model that ships."""
