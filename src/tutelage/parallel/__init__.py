"""Several processes acting as one."""
