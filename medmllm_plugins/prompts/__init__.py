"""What a task asks: protocols, wording, few-shot examples, and the settings and names of tasks."""
