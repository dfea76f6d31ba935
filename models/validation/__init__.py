"""Cross-validation, out-of-fold and test predictions, and the learning curve."""
