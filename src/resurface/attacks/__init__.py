"""Attacks: each tries to bring the knowledge back and leaves interventions, one per variant; none of them scores."""
