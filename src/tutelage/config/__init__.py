"""The configuration: schema, loading with overrides, and where each value came from."""
