"""The operator library: one module an operator, found by being here."""
