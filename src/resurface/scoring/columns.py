"""Columns of the tables that models write, apart from what writes them: the report reads them without a model's libraries."""

REFUSAL_COLUMNS = ["domain", "method", "seed", "benchmark", "task", "split", "question_id", "template", "refused"]
PERPLEXITY_COLUMNS = [
    "domain",
    "method",
    "seed",
    "attack",
    "variant",
    "template",
    "question_id",
    "text",
    "tokens",
    "nats",
]
