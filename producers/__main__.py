"""``python -m producers``: the same as ``pipeq``."""

from producers.cli import main

if __name__ == "__main__":
    main(prog_name="pipeq")
