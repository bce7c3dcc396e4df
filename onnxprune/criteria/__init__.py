"""Scores of units from the arrays of their weights."""
