"""Scoring: the harness supplies the questions, resurface's model class answers them under each intervention."""
