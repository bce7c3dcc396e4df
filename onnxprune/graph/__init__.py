"""The axis graph: which positions of which axes live and die together. Only this room imports networkx."""
