"""DEMO: throw-away servers and the demo. Imported by nothing else; the command `pipeq demo` loads it by name."""
