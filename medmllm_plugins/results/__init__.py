"""What a run leaves on disk: records, readers and writers, the run folder and its seal."""
