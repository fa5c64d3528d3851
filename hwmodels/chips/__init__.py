"""The built-in catalogue: one folder a vendor, one YAML file a chip."""
