"""Repairs: small trained parts that change a model whose own weights stay as they are."""
