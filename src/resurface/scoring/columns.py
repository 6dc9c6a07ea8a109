"""Columns of the table of refusals, apart from what writes it: the report reads it without a model's libraries."""

REFUSAL_COLUMNS = ["domain", "method", "seed", "benchmark", "task", "split", "question_id", "template", "refused"]
