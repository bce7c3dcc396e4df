"""Which units go: criteria and measured losses become ladders, ladders and a target become a choice."""
