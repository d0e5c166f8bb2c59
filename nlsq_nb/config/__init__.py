"""Options: flat for users, grouped and frozen for the rooms that read them."""
