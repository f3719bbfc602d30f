"""The answer loop: batches, journal, progress and signals; knows no host."""
