"""The fleet command: parses, calls the engine API, renders. No cluster logic."""
