"""Stateful handles."""
