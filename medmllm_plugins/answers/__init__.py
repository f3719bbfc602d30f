"""From a class list to a prompt, and from a model's answer back to a class."""
