"""Measurements of speed, memory and fill; each module prints a Markdown table and names the command that makes it."""
