"""The phases of a fit as pure steps on frozen states, and the one loop that runs them."""
