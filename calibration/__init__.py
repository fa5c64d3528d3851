"""What reality says: measurements, fitting and validation (the work that follows the spine)."""
