"""The axis graph: which positions of which axes live and die together. The only room that imports networkx."""
