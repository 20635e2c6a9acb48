"""The engine: composes, samples, trains, records."""
