"""Loading of declared data sets, and the checks that run over a whole data set."""
