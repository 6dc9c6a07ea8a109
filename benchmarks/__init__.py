"""Speed and memory, run by hand or on a GPU; never timed in a test."""
