"""What the longer subcommands of ``medmllm`` do."""
