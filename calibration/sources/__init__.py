"""Where measurements come from: adapters for public tables."""
