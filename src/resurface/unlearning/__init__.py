"""Unlearning methods: each takes the original and leaves a checkpoint that should no longer show the domain."""
