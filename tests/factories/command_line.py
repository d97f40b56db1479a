"""Lines of a shell, parsed as calls of the `cli`."""

import shlex

import typer

import cli

CLI = typer.main.get_command(cli.app)
COMMANDS = sorted(CLI.commands)


def parse_cli(line: str) -> None:
    """Parse a line of a shell and run nothing; what does not parse raises."""
    program, *arguments = shlex.split(line, comments=True)
    assert program == "cli"
    options = {name for option in CLI.params for name in option.opts} | {"--help"}
    while arguments and arguments[0].startswith("-"):
        assert arguments[0] in options, f"unknown option {arguments[0]}"
        arguments = arguments[1:]
    if arguments:
        name, *rest = arguments
        assert name in CLI.commands, f"unknown command {name}"
        if "--help" not in rest:
            CLI.commands[name].make_context(name, rest)
