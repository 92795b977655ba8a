"""What an example is, where examples come from, and what became of every input row."""
