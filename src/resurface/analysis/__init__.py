"""From scores to results: intervals, recovery and excess in one summary, and its figures, report and terminal table."""
