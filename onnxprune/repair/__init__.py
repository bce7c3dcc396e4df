"""Repair of the weights that remain, in closed form."""
