"""Removal of what contributes nothing: zero, constant and duplicate channels, dead branches."""
