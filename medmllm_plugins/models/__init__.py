"""Loading medical MLLMs, and where the stages of each family stand."""
