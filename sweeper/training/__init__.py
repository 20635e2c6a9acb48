"""Training of one configuration."""
