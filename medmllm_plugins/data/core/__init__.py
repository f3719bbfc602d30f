"""Documents, data-set declarations, folds and near-duplicates: what every data set has in common."""
