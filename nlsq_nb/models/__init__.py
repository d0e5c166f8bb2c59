"""Models: text, SymPy expressions and Python functions turned into programs."""
