"""The error browser of the page: every answered question with its probabilities, its pictures and related answers."""
