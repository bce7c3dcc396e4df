"""Weights that become zero in place: which layers, which weights, and what makes up for them."""
