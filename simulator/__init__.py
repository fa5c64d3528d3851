"""How long it takes: lowering, cost model, event engine, memory, explanation."""
