"""The report: run folders in, one self-contained page out, with its tables and figures beside it."""
