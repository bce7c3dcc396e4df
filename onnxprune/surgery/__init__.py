"""Masking and removal."""
