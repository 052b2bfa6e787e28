"""Studies with crossdet; nothing in the product imports this package."""
