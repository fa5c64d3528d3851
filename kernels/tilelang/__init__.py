"""TileLang in and out: its programs as ours, ours as its source, and what its compiler makes of them."""
