"""Settings of every method, attack and stage: one pydantic class each, the only place where a default lives.

Nothing heavy is imported in here: the workflow reads all of these before it schedules the first job.
"""
