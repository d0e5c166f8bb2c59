"""One module per target, each with a `render` that returns complete module text."""
