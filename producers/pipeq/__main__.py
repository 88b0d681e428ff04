"""``python -m pipeq``: the same as the command ``pipeq``."""

from pipeq.cli import main

if __name__ == "__main__":
    main(prog_name="pipeq")
