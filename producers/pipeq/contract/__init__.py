"""CONTRACT: what producers and workers agree on. A worker imports only this folder of pipeq."""
