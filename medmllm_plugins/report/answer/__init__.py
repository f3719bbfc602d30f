"""The first screen of the page: headline, dot strip, trust chips and the next step."""
