"""DEMO: throw-away servers and the demo. Nothing else imports it; the command `pipeq demo` loads it by name."""
