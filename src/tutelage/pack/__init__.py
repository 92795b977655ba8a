"""From documents to batches: which documents share a pack and a step, and how they are laid out as tensors."""
