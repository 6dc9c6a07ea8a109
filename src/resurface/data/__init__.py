"""Data stages: each source of a domain (the testbed, later public data sets) writes the same parquet tables."""
