"""What a task asks: its settings, its rows, and the names by which it is called."""
