"""Shape suites: one YAML file a suite."""
