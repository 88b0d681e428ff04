"""``pipeq completion``: a script with which a shell completes commands, options and their choices.

The script is click's: it asks ``pipeq`` itself, so that it never knows less than the installed version.
"""

from __future__ import annotations

import click

from pipeq.cli.options import example

#: The variable by which click's script says that it wants a completion.
VARIABLE = "_PIPEQ_COMPLETE"
SHELLS = ("bash", "zsh", "fish")


@click.command(
    epilog=example(
        "pipeq completion bash > ~/.local/share/bash-completion/completions/pipeq",
        "pipeq completion zsh > ~/.zfunc/_pipeq",
        "pipeq completion fish > ~/.config/fish/completions/pipeq.fish",
    )
)
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print a script with which your shell completes `pipeq`.

    Put it where your shell looks for completions, as below; for zsh, into a folder of `fpath`. Or try it at once, with
    `eval "$(pipeq completion bash)"`.
    """
    from click.shell_completion import get_completion_class

    group = click.get_current_context().find_root().command
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(group, {}, "pipeq", VARIABLE).source())
