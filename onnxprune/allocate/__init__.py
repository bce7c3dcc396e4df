"""Which units go, under which target."""
