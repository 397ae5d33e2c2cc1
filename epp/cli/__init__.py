"""The command line: thin, one module a subcommand, each with ``main(arguments) -> exit status``."""
