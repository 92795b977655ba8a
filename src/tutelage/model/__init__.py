"""The model: loading, attention per document, the loss, adapters, noise, probes and export."""
