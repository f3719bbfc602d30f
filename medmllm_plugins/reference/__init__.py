"""Reference classifiers: ordinary ones, trained on the train fold, to compare a model with."""
