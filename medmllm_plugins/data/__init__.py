"""Images in, labelled and grouped documents out."""
