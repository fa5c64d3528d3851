"""What reality says: measurements, fitting and validation."""
