"""The training loop and what surrounds it: preparation, optimiser, evaluation, checkpoints, receipt."""
