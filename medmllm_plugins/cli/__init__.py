"""The command line: one file a subcommand, each of which prints what a function of another room returns."""
