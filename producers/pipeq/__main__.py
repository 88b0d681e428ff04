"""``python -m producers``: the same as ``pipeq``."""

from pipeq.cli import main

if __name__ == "__main__":
    main(prog_name="pipeq")
