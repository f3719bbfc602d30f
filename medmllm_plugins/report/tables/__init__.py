"""Tables of the report, shown on the page and written as CSV."""
